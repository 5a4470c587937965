"""The ngram student: a linear classifier over hashed n-grams, exported as one ONNX graph.

No download, no torch, seconds of training on one core. `ngram_features` has the hashing,
`ngram_linear` the three linear models that are averaged, `ngram_graph` the exported graph.
`benchmarks/ngram_ablation.py` measures the choices made here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from training.students import ngram_features as features
from training.students import ngram_linear as linear
from training.students.ngram_graph import WeightTable, build_graph

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class NgramConfig:
    """Hyper-parameters; the defaults are measured (`benchmarks/ngram_ablation.py`)."""

    min_order: int = 2
    """Shortest character n-gram."""
    max_order: int = 6
    """Longest character n-gram. Characters at a word's edge see the edge as one more."""
    word_orders: int = 2
    """0: no words; 1: words; 2: words and pairs of words."""
    word_factor: float = 2.0
    """How much more a word (or pair) counts than a character n-gram of the same rarity."""
    idf_power: float = 1.75
    """Exponent of the inverse document frequency; 1 is plain TF-IDF."""
    keyword_weight: float = 2.0
    """Weight of a training keyword; a sentence's is 1."""
    logistic_strength: float = 5.0
    """Inverse of the logistic regression's L2 penalty (scikit-learn's C)."""
    logistic_iterations: int = 30
    """L-BFGS iterations of the logistic regression."""
    ridge_penalty: float = 1.0
    """L2 penalty of the ridge regression (scikit-learn's alpha)."""
    bayes_smoothing: float = 0.3
    """Additive smoothing of the complement naive Bayes model (scikit-learn's alpha)."""
    mixture: tuple[float, float, float] = (1.0, 1.0, 1.5)
    """Weights of logistic regression, ridge regression and naive Bayes in the average."""
    spread: float = 2.0
    """Standard deviation of the logits over the training texts: a sane scale for a softmax, which
    calibration then refines."""
    most_slots: int = 1 << 19
    """Largest number of slots of the weight table, a power of two."""
    slots_per_ngram: float = 3.0
    """The table has the power of two of slots at or above this times the distinct n-grams."""
    table_bytes: int = 5_800_000
    """Largest weight table; with many labels the number of slots is halved until it fits."""
    max_length: int = 2048
    """Characters read of a text."""


@dataclass(frozen=True)
class FittedNgram:
    """A trained ngram student, ready to be written into a bundle."""

    model: bytes
    """Serialised ONNX model."""
    tokenizer: str
    """Content of `tokenizer.json`."""
    max_length: int
    """Longest input in tokens, which are characters."""
    recipe: dict[str, object]
    """How it was made: the configuration and the counts, JSON-able."""
    batch_tokens: int = 8192
    """Padded characters that one run should take."""
    source: str = "embedded"


def fit(
    texts: Sequence[str],
    labels: Sequence[int],
    n_labels: int,
    *,
    kinds: Sequence[str] | None = None,
    config: NgramConfig = NgramConfig(),
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> FittedNgram:
    """Train a student.

    Args:
        texts: the training texts.
        labels: their labels, each in `[0, n_labels)`.
        n_labels: number of labels, also of those that no text has.
        kinds: per text, "sentence" or "keyword"; all sentences when absent.
        config: the hyper-parameters.
        seed: recorded; nothing in the training is random.
        progress: called with the share of the work done, 0 to 1.

    Returns:
        The model, its tokenizer and the recipe. The same input gives the same bytes.

    Raises:
        ValueError: no texts, lengths that differ, or a label out of range.
    """
    y = np.asarray(labels, dtype=np.int64)
    _check(texts, y, n_labels, kinds)
    report = progress or (lambda share: None)
    report(0.0)
    vocabulary = features.build_vocabulary(texts)
    tables, counts = vectorise(texts, vocabulary, n_labels, config)
    report(0.3)
    rarity = measure_rarity(counts, config)
    x = weigh(counts, rarity)
    importance = np.ones(len(y), dtype=np.float32)
    if kinds is not None:
        importance[[kind == "keyword" for kind in kinds]] = config.keyword_weight
    model = train_linear(
        x, y, n_labels, importance, config, lambda share: report(0.3 + 0.6 * share)
    )
    table = quantise(model, rarity)
    onnx_model = build_graph(tables, table).SerializeToString(deterministic=True)
    report(1.0)
    recipe: dict[str, object] = {
        "config": asdict(config),
        "seed": seed,
        "texts": len(texts),
        "keywords": 0 if kinds is None else sum(kind == "keyword" for kind in kinds),
        "characters": len(vocabulary) - 2,
        "slots": tables.slots,
        "slots_used": int(np.count_nonzero(rarity.seen)),
    }
    return FittedNgram(onnx_model, tokenizer_json(vocabulary), config.max_length, recipe)


def _check(texts: Sequence[str], y: IntArray, n_labels: int, kinds: Sequence[str] | None) -> None:
    if not texts:
        raise ValueError("no texts: give at least one")
    if len(texts) != len(y) or (kinds is not None and len(kinds) != len(texts)):
        raise ValueError(f"{len(texts)} texts, {len(y)} labels: give one label and kind per text")
    if n_labels < 2 or y.min() < 0 or y.max() >= n_labels:
        raise ValueError(
            f"labels from {y.min()} to {y.max()}: give 0 to n_labels - 1 = {n_labels - 1}"
        )


@dataclass(frozen=True)
class Counts:
    """Occurrences of n-grams, `[texts, slots]` float32 each."""

    characters: sparse.csr_matrix
    words: sparse.csr_matrix


def vectorise(
    texts: Sequence[str], vocabulary: dict[str, int], n_labels: int, config: NgramConfig
) -> tuple[features.HashTables, Counts]:
    """Hash the n-grams of the training texts, and choose the number of slots for them."""
    tables = features.build_tables(
        vocabulary,
        min_order=config.min_order,
        max_order=config.max_order,
        word_orders=config.word_orders,
        slots=1 << features.VALUE_BITS,
    )
    encoded = features.encode(texts, vocabulary, config.max_length)
    hashes = [features.slots_of(ids, tables) for ids in encoded]
    distinct = len(np.unique(np.concatenate([h for pair in hashes for h in pair])))
    slots = 1 << 10
    while slots < min(config.most_slots, config.slots_per_ngram * distinct):
        slots *= 2
    while slots * (n_labels + 1) > config.table_bytes and slots > 2:
        slots //= 2
    # Slots are the hash's low bits, so fewer slots only drop bits: no text is hashed twice.
    counts = Counts(
        _count([pair[0] & (slots - 1) for pair in hashes], slots),
        _count([pair[1] & (slots - 1) for pair in hashes], slots),
    )
    return features.with_slots(tables, slots), counts


def _count(rows: Sequence[features.IntArray], slots: int) -> sparse.csr_matrix:
    """Count each row's slots, the null slot excepted: `[rows, slots]` float32."""
    rows = [row[row != 0] for row in rows]
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    columns = np.concatenate(rows)
    data = np.ones(len(columns), dtype=np.float32)
    matrix = sparse.csr_matrix((data, columns, starts), shape=(len(rows), slots))
    matrix.sum_duplicates()
    return matrix


@dataclass(frozen=True)
class Rarity:
    """How rare, so how telling, each slot is.

    Attributes:
        weight: `[slots]` float32, a power of the IDF, times the factor of words.
        units: `[slots]` int8, the squared weight in units of `scale`: what the graph adds up to
            the square of a text's norm.
        scale: see `units`.
        seen: `[slots]` bool, whether a training text has it.
    """

    weight: FloatArray
    units: npt.NDArray[np.int8]
    scale: float
    seen: npt.NDArray[np.bool_]


def measure_rarity(counts: Counts, config: NgramConfig) -> Rarity:
    """Measure the rarity of every slot on the training texts, keywords included."""
    n, slots = counts.characters.shape
    characters = np.bincount(counts.characters.indices, minlength=slots)
    words = np.bincount(counts.words.indices, minlength=slots)
    idf = np.log((1 + n) / (1 + characters + words)) + 1
    # A text may hold a slot's n-gram both as characters and as a word, hence the floor.
    weight = np.maximum(idf, 1) ** config.idf_power
    # A slot that words and character n-grams share is its majority's. One never seen counts as
    # a character n-gram: its score is zero, and only the norm sees it.
    weight = np.where(words > characters, config.word_factor, 1.0) * weight
    scale = float((weight**2).max()) / 127
    units = np.round(weight**2 / scale).astype(np.int8)
    units[0] = 0
    return Rarity(weight.astype(np.float32), units, scale, characters + words > 0)


def weigh(counts: Counts, rarity: Rarity) -> sparse.csr_matrix:
    """Weigh the counts by rarity and divide by the text's norm, as the graph does.

    The norm adds up occurrences, not distinct n-grams: so it needs no sorting in the graph.

    Returns:
        `[texts, slots]` float32.
    """
    total = sparse.csr_matrix(counts.characters + counts.words)
    units = total @ rarity.units.astype(np.float32)
    norm = np.sqrt(np.maximum(units, 1) * np.float32(rarity.scale))
    row = np.repeat(np.arange(total.shape[0]), np.diff(total.indptr))
    total.data = (total.data * rarity.weight[total.indices] / norm[row]).astype(np.float32)
    return total


def train_linear(
    x: sparse.csr_matrix,
    y: IntArray,
    n_labels: int,
    importance: FloatArray,
    config: NgramConfig,
    progress: Callable[[float], None],
) -> linear.LinearModel:
    """Fit three linear models to `x`, `[texts, slots]`, and average them.

    They err differently, most of all where the texts to come are of another kind than the training
    texts. Being linear in the same features, they are one model in the end, at no extra cost. Each
    is divided by the spread of its scores, so that the mixture's weights mean the same for all.
    """
    used = np.unique(x.indices)
    dense = sparse.csr_matrix(x[:, used])
    mass = np.bincount(y, weights=importance, minlength=n_labels)
    present = np.count_nonzero(mass)
    # Balanced: each label present has the same total weight.
    balance = importance.sum() / present / np.maximum(mass, 1e-9)
    weights = (importance * balance[y]).astype(np.float32)
    fits: tuple[Callable[[], linear.LinearModel], ...] = (
        lambda: linear.logistic_regression(
            dense,
            y,
            n_labels,
            weights,
            strength=config.logistic_strength,
            iterations=config.logistic_iterations,
        ),
        lambda: linear.ridge_regression(dense, y, n_labels, weights, penalty=config.ridge_penalty),
        lambda: linear.complement_bayes(
            dense, y, n_labels, weights, smoothing=config.bayes_smoothing
        ),
    )
    coefficients = np.zeros((dense.shape[1], n_labels), dtype=np.float32)
    bias = np.zeros(n_labels, dtype=np.float32)
    done = 0
    for share, fit_one in zip(config.mixture, fits, strict=True):
        if share:
            one = fit_one()
            unit = share / max(float(np.std(one.scores(dense))), 1e-6)
            coefficients += np.float32(unit) * one.coefficients
            bias += np.float32(unit) * one.bias
        done += 1
        progress(done / len(fits))
    mixed = linear.LinearModel(coefficients, bias)
    unit = np.float32(config.spread / max(float(np.std(mixed.scores(dense))), 1e-6))
    full = np.zeros((x.shape[1], n_labels), dtype=np.float32)
    full[used] = unit * coefficients
    return linear.LinearModel(full, unit * bias)


def quantise(model: linear.LinearModel, rarity: Rarity) -> WeightTable:
    """Fold the rarity into the coefficients and round each column to int8."""
    folded = model.coefficients * rarity.weight[:, None]
    folded[0] = 0
    scale = np.maximum(np.abs(folded).max(axis=0), 1e-12) / 127
    rows = np.empty((len(folded), folded.shape[1] + 1), dtype=np.int8)
    rows[:, :-1] = np.round(folded / scale)
    rows[:, -1] = rarity.units
    return WeightTable(rows, np.append(scale, rarity.scale).astype(np.float32), model.bias)


def tokenizer_json(vocabulary: dict[str, int]) -> str:
    """Write the tokenizer that yields one token per character, as Hugging Face `tokenizers` JSON.

    A BPE model without merges is the fastest way to characters (measured: 12 µs per 100 characters;
    splitting into words of one character takes 28). The dropout of 1 drops the merges that do not
    exist, so it changes no result; it bypasses BPE's cache of whole inputs, which would grow by
    tens of megabytes.
    """
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "BPE",
            "dropout": 1.0,
            "unk_token": features.UNK_TOKEN,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [],
        },
    }
    return json.dumps(content, ensure_ascii=False)
