"""How good predictions are, how sure that is, and whether two predictors differ.

A prediction of None is an invalid reply: always wrong, and no class of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    def to_json(self, name: str) -> dict[str, Any]:
        """The value under its name, the interval beside it."""
        return {name: self.value, f"{name}_interval": [self.low, self.high]}

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class LabelScores:
    """How one label fares; `support` is the number of texts that truly have it."""

    precision: float
    recall: float
    f1: float
    support: int


def confusion(
    truth: Sequence[str], predicted: Sequence[str | None], labels: Sequence[str]
) -> Counts:
    """Confusion matrix: int64 [labels, labels + 1], rows true, the last column invalid.

    Raises:
        ValueError: a label that isn't among `labels`, or sequences of different lengths.
    """
    index = {label: i for i, label in enumerate(labels)}
    matrix = np.zeros((len(labels), len(labels) + 1), dtype=np.int64)
    for true, guess in zip(truth, predicted, strict=True):
        try:
            matrix[index[true], len(labels) if guess is None else index[guess]] += 1
        except KeyError as error:
            raise ValueError(f"{error.args[0]!r} is not among the labels") from None
    return matrix


def accuracy_of(matrix: Counts) -> Floats:
    """Accuracy of confusion matrices [..., labels, labels + 1]: float64 [...]; 0 of none is 0."""
    right = np.trace(matrix, axis1=-2, axis2=-1)
    return np.asarray(right / np.maximum(matrix.sum(axis=(-2, -1)), 1), dtype=np.float64)


def macro_f1_of(matrix: Counts) -> Floats:
    """Macro-F1 of confusion matrices [..., labels, labels + 1]: float64 [...].

    The mean runs over the labels that occur in the truth or in the predictions, as
    scikit-learn's ``f1_score(average="macro")`` has it. Of no texts at all it is 0.
    """
    square = matrix[..., :-1]
    hits = np.diagonal(square, axis1=-2, axis2=-1)
    # F1 = 2 TP / (true + predicted): what neither truth nor predictions hold has 0 / 0, left out.
    size = matrix.sum(axis=-1) + square.sum(axis=-2)
    occurs = size > 0
    f1 = np.where(occurs, 2 * hits / np.maximum(size, 1), 0.0)
    return np.asarray(f1.sum(axis=-1) / np.maximum(occurs.sum(axis=-1), 1), dtype=np.float64)


def macro_f1(truth: Sequence[str], predicted: Sequence[str | None], labels: Sequence[str]) -> float:
    return float(macro_f1_of(confusion(truth, predicted, labels)))


def per_label(matrix: Counts, labels: Sequence[str]) -> dict[str, LabelScores]:
    """Precision, recall and F1 of each label of one confusion matrix; 0 where undefined."""
    square = matrix[:, :-1]
    hits, true, predicted = np.diagonal(square), matrix.sum(axis=1), square.sum(axis=0)
    return {
        label: LabelScores(
            precision=float(hits[i] / max(predicted[i], 1)),
            recall=float(hits[i] / max(true[i], 1)),
            f1=float(2 * hits[i] / max(true[i] + predicted[i], 1)),
            support=int(true[i]),
        )
        for i, label in enumerate(labels)
    }


def bootstrap(
    matrix: Counts,
    statistic: Callable[[Counts], Floats],
    *,
    resamples: int = 2_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap over the texts (Efron and Tibshirani 1993, chapter 13).

    The statistic depends on the texts through the confusion matrix alone, so drawing texts with
    replacement is drawing the matrix's cells from a multinomial distribution.
    """
    value = float(statistic(matrix))
    total = int(matrix.sum())
    if total == 0:
        return Interval(value, value, value)
    cells = matrix.ravel() / total
    draws = np.random.default_rng(seed).multinomial(total, cells, size=resamples)
    values = statistic(draws.reshape(resamples, *matrix.shape))
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def mcnemar_exact(first_right: Sequence[bool], second_right: Sequence[bool]) -> float:
    """Two-sided exact p-value of McNemar's test on paired answers (McNemar 1947).

    Of the texts that exactly one of the two gets right, each is as likely to be right under the
    null hypothesis: a binomial test with probability one half.
    """
    # scipy.stats takes a second to import, which commands that compare nothing need not wait for.
    from scipy.stats import binomtest

    pairs = list(zip(first_right, second_right, strict=True))
    first_only = sum(a and not b for a, b in pairs)
    discordant = sum(a != b for a, b in pairs)
    if discordant == 0:
        return 1.0
    return float(binomtest(first_only, discordant, 0.5).pvalue)


def fit_temperature(logits: npt.NDArray[np.float32], truth: Sequence[int]) -> float:
    """The temperature that minimises the negative log-likelihood (Guo et al., ICML 2017).

    Args:
        logits: [n, labels]
        truth: positions of the true labels, [n]
    """
    from scipy.optimize import minimize_scalar

    scores = logits.astype(np.float64)
    rows = np.arange(len(scores))

    def loss(log_temperature: float) -> float:
        scaled = scores / np.exp(log_temperature)
        scaled -= scaled.max(axis=1, keepdims=True)
        normaliser = np.log(np.exp(scaled).sum(axis=1))
        return float((normaliser - scaled[rows, list(truth)]).mean())

    # Beyond these bounds a score is a coin's toss or a certainty; no held-out set supports either.
    result = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(result.x))


def expected_calibration_error(
    confidence: Floats, right: npt.NDArray[np.bool_], *, bins: int = 15
) -> float:
    """Mean gap between confidence and accuracy over equal-width bins (Naeini et al., AAAI 2015)."""
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = sum(
        abs(float(confidence[place == b].sum() - right[place == b].sum())) for b in range(bins)
    )
    return gap / max(len(confidence), 1)
