"""The ngram student: a linear classifier over hashed n-grams, exported as one ONNX graph.

No download, no torch, seconds of training on one core. See `ngram_features` for the hashing and
`ngram_graph` for the exported graph; `benchmarks/ngram_ablation.py` measures the choices made here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize, sparse

from training.students import ngram_features as features
from training.students.ngram_graph import NORM_FLOOR, WeightTable, build_graph

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class NgramConfig:
    """Hyper-parameters; the defaults are measured (`benchmarks/ngram_ablation.py`)."""

    min_order: int = 2
    """Shortest character n-gram."""
    max_order: int = 5
    """Longest character n-gram."""
    word_orders: int = 2
    """0: no words; 1: words; 2: words and pairs of words."""
    slot_bits: int = 18
    """The weight table has at most 2**slot_bits slots."""
    table_bytes: int = 5_600_000
    """Largest weight table; with many labels the number of slots is halved until it fits."""
    strength: float = 10.0
    """Inverse of the L2 regularisation of the logistic regression (scikit-learn's C)."""
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
    """Padded characters that one run of the model should take."""
    source: str = "embedded"
    """Nothing pretrained went into it."""


def fit(
    texts: Sequence[str],
    labels: Sequence[int],
    n_labels: int,
    *,
    kinds: Sequence[str] | None = None,
    config: NgramConfig = NgramConfig(),  # noqa: B008 (frozen)
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
        seed: of every random choice.
        progress: called with the share of the work done, 0 to 1.

    Returns:
        The model, its tokenizer and the recipe. The same input gives the same bytes.
    """
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
    occurrences = occurrence_matrix(texts, vocabulary, tables, config.max_length)
    report(0.3)
    squared_idf, idf_scale = _squared_idf(occurrences)
    x = _weighted(occurrences, squared_idf)
    y = np.asarray(labels, dtype=np.int64)
    weights, bias = _logistic_regression(x, y, n_labels, config.strength)
    report(0.9)
    table = _quantise(weights, bias, squared_idf, idf_scale)
    model = build_graph(tables, table).SerializeToString()
    tokenizer = tokenizer_json(vocabulary)
    report(1.0)
    recipe: dict[str, object] = {
        "config": asdict(config),
        "seed": seed,
        "texts": len(texts),
        "characters": len(vocabulary),
        "slots": tables.slots,
        "slots_used": int(np.count_nonzero(np.diff(occurrences.tocsc().indptr))),
    }
    return FittedNgram(model, tokenizer, config.max_length, recipe)


def _slots(config: NgramConfig, n_labels: int) -> int:
    slots = 1 << config.slot_bits
    while slots * (n_labels + 1) > config.table_bytes and slots > 2:
        slots //= 2
    return slots


def occurrence_matrix(
    texts: Sequence[str],
    vocabulary: dict[str, int],
    tables: features.HashTables,
    max_length: int,
) -> sparse.csr_matrix:
    """Count the n-grams of the texts: `[texts, slots]`, float32."""
    rows = [
        features.slots_of(ids, tables) for ids in features.encode(texts, vocabulary, max_length)
    ]
    indptr = np.concatenate([[0], np.cumsum([len(r) for r in rows])])
    indices = np.concatenate(rows) if rows else np.zeros(0, np.int32)
    data = np.ones(len(indices), dtype=np.float32)
    matrix = sparse.csr_matrix((data, indices, indptr), shape=(len(texts), tables.slots))
    matrix.sum_duplicates()
    return matrix


def _squared_idf(occurrences: sparse.csr_matrix) -> tuple[FloatArray, float]:
    """Return the squared IDF per slot, `[slots]`, in units of the table's scale, and the scale."""
    n = occurrences.shape[0]
    df = np.bincount(occurrences.indices, minlength=occurrences.shape[1])
    idf = np.log((1 + n) / (1 + df)) + 1
    squared = idf**2
    scale = float(squared.max()) / 127
    return np.maximum(np.round(squared / scale), 1).astype(np.float32) * np.float32(scale), scale


def _weighted(occurrences: sparse.csr_matrix, squared_idf: FloatArray) -> sparse.csr_matrix:
    """Weigh counts by IDF and divide by the text's norm, as the graph does."""
    norm = np.sqrt(np.maximum(occurrences @ squared_idf, NORM_FLOOR))
    x = occurrences @ sparse.diags(np.sqrt(squared_idf))
    return sparse.csr_matrix(sparse.diags(1 / norm) @ x, dtype=np.float32)


def _logistic_regression(
    x: sparse.csr_matrix, y: npt.NDArray[np.int64], n_labels: int, strength: float
) -> tuple[FloatArray, FloatArray]:
    """Fit a multinomial logistic regression with an L2 penalty, by L-BFGS.

    Returns:
        Weights `[slots, n_labels]` and bias `[n_labels]`.
    """
    used = np.flatnonzero(np.diff(x.tocsc().indptr))
    xs = sparse.csr_matrix(x[:, used])
    xt = sparse.csr_matrix(xs.T)
    n, d = xs.shape
    target = np.zeros((n, n_labels), dtype=np.float32)
    target[np.arange(n), y] = 1

    def loss(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        w = flat[: d * n_labels].reshape(d, n_labels).astype(np.float32)
        b = flat[d * n_labels :].astype(np.float32)
        z = xs @ w + b
        z -= z.max(1, keepdims=True)
        e = np.exp(z)
        total = e.sum(1, keepdims=True)
        p = e / total
        value = float((np.log(total)[:, 0] - (z * target).sum(1)).sum(dtype=np.float64))
        r = p - target
        value = strength * value + 0.5 * float((w.astype(np.float64) ** 2).sum())
        grad = np.concatenate([(strength * (xt @ r) + w).ravel(), strength * r.sum(0)])
        return value, grad.astype(np.float64)

    start = np.zeros((d + 1) * n_labels)
    result = optimize.minimize(
        loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200, "gtol": 1e-3}
    )
    weights = np.zeros((x.shape[1], n_labels), dtype=np.float32)
    weights[used] = result.x[: d * n_labels].reshape(d, n_labels)
    return weights, result.x[d * n_labels :].astype(np.float32)


def _quantise(
    weights: FloatArray, bias: FloatArray, squared_idf: FloatArray, idf_scale: float
) -> WeightTable:
    """Fold the IDF into the weights and round each column to int8."""
    folded = weights * np.sqrt(squared_idf)[:, None]
    folded[0] = 0
    scale = np.maximum(np.abs(folded).max(0), 1e-12) / 127
    rows = np.empty((len(folded), folded.shape[1] + 1), dtype=np.int8)
    rows[:, :-1] = np.round(folded / scale)
    rows[:, -1] = np.round(squared_idf / idf_scale)
    rows[0] = 0
    return WeightTable(rows, np.append(scale, idf_scale).astype(np.float32), bias)


def tokenizer_json(vocabulary: dict[str, int]) -> str:
    """Write the tokenizer that yields one token per character, as Hugging Face `tokenizers` JSON.

    A BPE model without merges is the fastest way to characters (measured 12 us per 100 characters;
    splitting into words of one character takes 28 us). The dropout of 1 drops the merges that do
    not exist, so it changes no result; what it does is bypass BPE's cache of whole inputs, which
    would grow by tens of megabytes.
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
