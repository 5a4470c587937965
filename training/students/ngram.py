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
    max_order: int = 5
    """Longest character n-gram; a word's edge counts as one of its characters."""
    word_orders: int = 2
    """0: no words; 1: words; 2: words and pairs of words."""
    word_weight: float = 2.0
    """How much more a word (or pair) counts than a character n-gram of the same rarity."""
    idf_power: float = 1.75
    """Exponent of the inverse document frequency; 1 is plain TF-IDF."""
    keyword_weight: float = 2.0
    """Weight of a training keyword; a sentence's is 1."""
    shares: tuple[float, float] = (1.0, 1.0)
    """Shares of logistic regression and ridge regression in the mean."""
    bayes_share: float = 400.0
    """Share of complement naive Bayes, over the cube of the number of labels: 50 for two labels,
    1.2 for seven, 0.4 for ten. It bears a change of domain best, but the complement of one label
    among many is nearly everything and tells little."""
    logistic_strength: float = 5.0
    """Inverse of the logistic regression's L2 penalty (scikit-learn's C)."""
    logistic_iterations: int = 30
    """L-BFGS iterations of the logistic regression."""
    ridge_penalty: float = 1.0
    """L2 penalty of the ridge regression (scikit-learn's alpha)."""
    bayes_smoothing: float = 0.3
    """Additive smoothing of complement naive Bayes (scikit-learn's alpha)."""
    spread: float = 2.0
    """Standard deviation of the logits over the training texts: a sane scale for a softmax, which
    calibration then refines."""
    slot_bits: int = 18
    """2**slot_bits slots for character n-grams, and a quarter as many for words."""
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
    tables = features.build_tables(
        vocabulary,
        min_order=config.min_order,
        max_order=config.max_order,
        word_orders=config.word_orders,
        slots=_slots(config, n_labels),
    )
    counts = occurrence_matrix(texts, vocabulary, tables, config.max_length)
    report(0.3)
    importance = importance_of(counts, tables, config)
    x = weigh(counts, importance)
    weights = np.ones(len(y), dtype=np.float32)
    if kinds is not None:
        weights[[kind == "keyword" for kind in kinds]] = config.keyword_weight
    model = train_linear(x, y, n_labels, weights, config, lambda share: report(0.3 + 0.6 * share))
    graph = build_graph(tables, quantise(model, importance))
    report(1.0)
    recipe: dict[str, object] = {
        "config": asdict(config),
        "seed": seed,
        "texts": len(texts),
        "keywords": 0 if kinds is None else sum(kind == "keyword" for kind in kinds),
        "characters": len(vocabulary) - 2,
        "rows": tables.rows,
        "rows_used": len(np.unique(counts.indices)),
    }
    return FittedNgram(
        graph.SerializeToString(deterministic=True),
        tokenizer_json(vocabulary),
        config.max_length,
        recipe,
    )


def _check(texts: Sequence[str], y: IntArray, n_labels: int, kinds: Sequence[str] | None) -> None:
    if not texts:
        raise ValueError("no texts: give at least one")
    if len(texts) != len(y) or (kinds is not None and len(kinds) != len(texts)):
        raise ValueError(f"{len(texts)} texts, {len(y)} labels: give one label and kind per text")
    if n_labels < 2 or y.min() < 0 or y.max() >= n_labels:
        raise ValueError(
            f"labels from {y.min()} to {y.max()}: give 0 to n_labels - 1 = {n_labels - 1}"
        )


def _slots(config: NgramConfig, n_labels: int) -> int:
    slots = 1 << config.slot_bits
    while slots * 5 // 4 * (n_labels + 1) > config.table_bytes and slots > 8:
        slots //= 2
    return slots


def occurrence_matrix(
    texts: Sequence[str],
    vocabulary: dict[str, int],
    tables: features.HashTables,
    max_length: int,
) -> sparse.csr_matrix:
    """Count the n-grams of the texts: `[texts, tables.rows]` float32."""
    rows = [
        features.slots_of(ids, tables) for ids in features.encode(texts, vocabulary, max_length)
    ]
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    columns = np.concatenate(rows)
    data = np.ones(len(columns), dtype=np.float32)
    matrix = sparse.csr_matrix((data, columns, starts), shape=(len(rows), tables.rows))
    matrix.sum_duplicates()
    return matrix


def importance_of(
    counts: sparse.csr_matrix, tables: features.HashTables, config: NgramConfig
) -> FloatArray:
    """Measure how telling each row is: a power of its IDF, and more for words.

    Returns:
        `[rows]` float32, whole numbers from 1 to 127 and 0 for the null rows: the graph holds them
        as int8, and training uses the same rounded numbers. Their unit does not matter, since
        they are divided by a norm made of them.
    """
    n, rows = counts.shape
    frequency = np.bincount(counts.indices, minlength=rows)
    importance = (np.log((1 + n) / (1 + frequency)) + 1) ** config.idf_power
    importance[tables.slots :] *= config.word_weight
    units: FloatArray = np.maximum(np.round(importance * (127 / importance.max())), 1).astype(
        np.float32
    )
    units[[0, tables.slots]] = 0
    return units


def weigh(counts: sparse.csr_matrix, importance: FloatArray) -> sparse.csr_matrix:
    """Weigh the counts by importance and divide by the text's norm, as the graph does.

    The norm adds up occurrences, not distinct n-grams, so the graph needs no sorting for it.

    Returns:
        `[texts, rows]` float32.
    """
    norm = np.sqrt(np.maximum(counts @ importance**2, 1))
    text = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    data = counts.data * importance[counts.indices] / norm[text]
    return sparse.csr_matrix(
        (data.astype(np.float32), counts.indices, counts.indptr), shape=counts.shape
    )


def train_linear(
    x: sparse.csr_matrix,
    y: IntArray,
    n_labels: int,
    weights: FloatArray,
    config: NgramConfig,
    progress: Callable[[float], None],
) -> linear.LinearModel:
    """Fit three linear models to `x`, `[texts, rows]`, and average them.

    They err differently, most of all where the texts to come are of another kind than the training
    texts. Being linear in the same features, they are one model in the end, at no extra cost. Each
    is divided by the spread of its scores, so that the shares mean the same for all.
    """
    used = np.unique(x.indices)
    compact = sparse.csr_matrix(x[:, used])
    mass = np.bincount(y, weights=weights, minlength=n_labels)
    present = np.count_nonzero(mass)
    # Balanced: each label present has the same total weight.
    balance = weights.sum() / present / np.maximum(mass, 1e-9)
    balanced = (weights * balance[y]).astype(np.float32)
    fits: tuple[Callable[[], linear.LinearModel], ...] = (
        lambda: linear.logistic_regression(
            compact,
            y,
            n_labels,
            balanced,
            strength=config.logistic_strength,
            iterations=config.logistic_iterations,
        ),
        lambda: linear.ridge_regression(
            compact, y, n_labels, balanced, penalty=config.ridge_penalty
        ),
        lambda: linear.complement_bayes(
            compact, y, n_labels, balanced, smoothing=config.bayes_smoothing
        ),
    )
    coefficients = np.zeros((compact.shape[1], n_labels), dtype=np.float32)
    bias = np.zeros(n_labels, dtype=np.float32)
    shares = (*config.shares, config.bayes_share / n_labels**3)
    for done, (share, fit_one) in enumerate(zip(shares, fits, strict=True), start=1):
        if share:
            one = fit_one()
            factor = np.float32(share / max(float(np.std(one.scores(compact))), 1e-6))
            coefficients += factor * one.coefficients
            bias += factor * one.bias
        progress(done / len(fits))
    mixed = linear.LinearModel(coefficients, bias)
    unit = np.float32(config.spread / max(float(np.std(mixed.scores(compact))), 1e-6))
    full = np.zeros((x.shape[1], n_labels), dtype=np.float32)
    full[used] = unit * coefficients
    return linear.LinearModel(full, unit * bias)


def quantise(model: linear.LinearModel, importance: FloatArray) -> WeightTable:
    """Fold the importance into the coefficients and round each label's column to int8."""
    folded = model.coefficients * importance[:, None]
    scale = np.maximum(np.abs(folded).max(axis=0), 1e-12) / 127
    rows = np.concatenate([np.round(folded / scale), importance[:, None]], axis=1)
    return WeightTable(rows.astype(np.int8), scale.astype(np.float32), model.bias)


def tokenizer_json(vocabulary: dict[str, int]) -> str:
    """Write the tokenizer that yields one token per character, as Hugging Face `tokenizers` JSON.

    A BPE model without merges is the fastest way to characters (measured: 12 µs per 100 characters;
    splitting into words of one character takes 28). The dropout of 1 drops the merges that do not
    exist, so it changes no result; it bypasses BPE's cache of whole inputs, which would grow by
    tens of megabytes.
    """
    content: dict[str, object] = {
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
