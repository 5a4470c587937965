"""The linear models that the ngram student averages: each from sparse features to scores.

All take `x` `[texts, features]` float32, labels `y` `[texts]` and positive weights `[texts]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize, sparse

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LinearModel:
    """`scores = x @ coefficients + bias`.

    Attributes:
        coefficients: `[features, labels]` float32.
        bias: `[labels]` float32.
    """

    coefficients: FloatArray
    bias: FloatArray

    def scores(self, x: sparse.csr_matrix) -> FloatArray:
        """Return the scores of `x`, `[texts, labels]` float32."""
        result: FloatArray = x @ self.coefficients + self.bias
        return result


def _one_hot(y: IntArray, n_labels: int) -> FloatArray:
    target = np.zeros((len(y), n_labels), dtype=np.float32)
    target[np.arange(len(y)), y] = 1
    return target


def logistic_regression(
    x: sparse.csr_matrix,
    y: IntArray,
    n_labels: int,
    weights: FloatArray,
    *,
    strength: float,
    iterations: int,
) -> LinearModel:
    """Fit a multinomial logistic regression with an L2 penalty, by L-BFGS, bias unpenalised."""
    transposed = sparse.csr_matrix(x.T)
    d = x.shape[1]
    target = _one_hot(y, n_labels)
    cost = (strength * weights).astype(np.float32)

    def loss(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        coefficients = flat[: d * n_labels].reshape(d, n_labels).astype(np.float32)
        z = x @ coefficients + flat[d * n_labels :].astype(np.float32)
        z -= z.max(axis=1, keepdims=True)
        e = np.exp(z)
        total = e.sum(axis=1, keepdims=True)
        surprise = np.log(total)[:, 0] - (z * target).sum(axis=1)
        value = float((cost * surprise).sum(dtype=np.float64))
        value += 0.5 * float(np.vdot(coefficients, coefficients))
        residual = (e / total - target) * cost[:, None]
        gradient = (transposed @ residual + coefficients).ravel()
        return value, np.concatenate([gradient, residual.sum(axis=0)]).astype(np.float64)

    result = optimize.minimize(
        loss,
        np.zeros((d + 1) * n_labels),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": iterations, "maxcor": 6, "gtol": 1e-2},
    )
    flat = result.x.astype(np.float32)
    return LinearModel(flat[: d * n_labels].reshape(d, n_labels), flat[d * n_labels :])


def ridge_regression(
    x: sparse.csr_matrix,
    y: IntArray,
    n_labels: int,
    weights: FloatArray,
    *,
    penalty: float,
    iterations: int = 60,
    tolerance: float = 1e-3,
) -> LinearModel:
    """Fit least squares to the targets 1 (the label) and -1 / (labels - 1) (the others).

    Solved in its dual form, `(x x' + penalty / weights) a = target - bias`, one unknown per text,
    by conjugate gradients; the coefficients are `x' a`. The bias is the targets' weighted mean.
    """
    transposed = sparse.csr_matrix(x.T)
    target = np.where(_one_hot(y, n_labels) > 0, 1.0, -1.0 / (n_labels - 1))
    bias = (target * weights[:, None]).sum(axis=0) / weights.sum()
    diagonal = (penalty / weights)[:, None].astype(np.float32)
    residual = (target - bias).astype(np.float32)
    solution = np.zeros_like(residual)
    direction = residual.copy()
    square = (residual**2).sum(axis=0)
    goal = square * tolerance**2
    for _ in range(iterations):
        if np.all(square <= goal):
            break
        image = x @ (transposed @ direction) + diagonal * direction
        step = square / np.maximum((direction * image).sum(axis=0), 1e-30)
        solution += step * direction
        residual -= step * image
        before, square = square, (residual**2).sum(axis=0)
        direction = residual + square / np.maximum(before, 1e-30) * direction
    return LinearModel(transposed @ solution, bias.astype(np.float32))


def complement_bayes(
    x: sparse.csr_matrix, y: IntArray, n_labels: int, weights: FloatArray, *, smoothing: float
) -> LinearModel:
    """Fit complement naive Bayes (Rennie et al., ICML 2003), without its prior.

    A label's score is how unlikely the text is among the texts of all other labels. The
    coefficients are centred over the labels, so a feature that says nothing has none.
    """
    mass = np.asarray(sparse.csr_matrix(x.T) @ (_one_hot(y, n_labels) * weights[:, None]))
    others = mass.sum(axis=1, keepdims=True) - mass + smoothing
    coefficients = -np.log(others / others.sum(axis=0))
    coefficients -= coefficients.mean(axis=1, keepdims=True)
    return LinearModel(coefficients.astype(np.float32), np.zeros(n_labels, dtype=np.float32))
