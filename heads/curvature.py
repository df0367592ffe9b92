"""Logistic problems at some points in; an inverse Hessian that is nearly theirs, for L-BFGS to begin with, out.

It is learned from a sample of the rows and the mean over the problems, for a first Hessian need not be exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from heads.predictors import Doubles
from heads.softmax_objective import SoftmaxObjective

LEAST_ROWS = 8  # a feature that are looked at
OPERATIONS = 5e10  # that may go into it, of which more rows are looked at: half a second or so
BLOCK_BYTES = 1 << 28  # of the inverses of all classes, up to which classes have one each

_TALL = 4  # rows a feature, from which classes by themselves are worth their inverses


class InverseHessian(Protocol):
    """What turns a gradient (R, D + 1) into a step."""

    def solve(self, gradient: Doubles, penalty: float) -> Doubles:
        """The step (R, D + 1), float64, that the gradient of a problem with this penalty asks for."""


@dataclass(frozen=True, eq=False)
class BlockHessian:
    """Each class by itself: the inverse of the mean of p_k (1 - p_k) z z^T + penalty.

    Attributes:
        inverses: float32 (R, D + 1, D + 1).
        shifts_nothing: whether the same for all classes is taken off steps, as of softmax, which it does not change.
    """

    inverses: NDArray[np.float32]
    shifts_nothing: bool

    def solve(self, gradient: Doubles, penalty: float) -> Doubles:
        gradient = gradient - gradient.mean(axis=0) if self.shifts_nothing else gradient
        step = np.matmul(self.inverses, gradient.astype(np.float32)[:, :, None])[:, :, 0].astype(np.float64)
        return step - step.mean(axis=0) if self.shifts_nothing else step


@dataclass(frozen=True, eq=False)
class KroneckerHessian:
    """The inverse of classes x scatter + penalty, as if rows' probabilities did not depend on their features.

    Attributes:
        class_values, class_vectors: eigenvalues (R,) and eigenvectors (R, R) of the mean of diag(p) - p p^T.
        values, vectors: eigenvalues (r,) and eigenvectors (D, r) of the rows' scatter; where r < D the rest is 0.
    """

    class_values: Doubles
    class_vectors: Doubles
    values: Doubles
    vectors: Doubles

    def solve(self, gradient: Doubles, penalty: float) -> Doubles:
        turned = self.class_vectors.T @ gradient
        inner = turned[:, :-1] @ self.vectors
        step = np.empty_like(gradient)
        if len(self.values) == len(self.vectors):
            inner /= self.class_values[:, None] * self.values + penalty
            step[:, :-1] = self.class_vectors @ inner @ self.vectors.T
        else:  # outside of the rows' span only the penalty bends
            inner *= 1 / (self.class_values[:, None] * self.values + penalty) - 1 / penalty
            step[:, :-1] = self.class_vectors @ inner @ self.vectors.T + gradient[:, :-1] / penalty
        step[:, -1] = self.class_vectors @ (turned[:, -1] / self.class_values)
        return step


def inverse_hessian(objective: SoftmaxObjective, points: Doubles, penalty: float) -> InverseHessian:
    """From the rows' mean probabilities at the problems' points (P, R, D + 1) of the objective's own features."""
    n_rows, n_features = len(objective.codes), objective.n_features
    affordable = int(OPERATIONS / (2 * objective.n_rows * n_features**2))
    z, chosen = objective.sample(min(n_rows, max(LEAST_ROWS * n_features, affordable)))
    omega = objective.weights[chosen].sum(axis=1) / objective.weights[chosen].sum()
    p = _probabilities(z, points, objective.n_classes)[:, objective.n_classes - objective.n_rows :]
    if _TALL * n_features <= n_rows and objective.n_rows * (n_features + 1) ** 2 * 4 <= BLOCK_BYTES:
        return _blocks(z, p, omega, penalty)
    mean = omega @ p
    classes = np.diag(mean) - (p * omega[:, None]).T @ p
    class_values, class_vectors = np.linalg.eigh(classes)
    class_values = np.maximum(class_values, 1e-3 * max(class_values[-1], 1e-30))
    spread = omega * (1 - (p**2).sum(axis=1)) / class_values.sum()
    rows = z * np.sqrt(np.maximum(spread, 0)).astype(z.dtype)[:, None]
    if n_features < len(z):
        values, vectors = np.linalg.eigh((rows.T @ rows).astype(np.float64))
        return KroneckerHessian(class_values, class_vectors, np.maximum(values, 0.0), vectors)
    _, singular, right = np.linalg.svd(rows, full_matrices=False)
    return KroneckerHessian(class_values, class_vectors, singular.astype(np.float64) ** 2, right.T.astype(np.float64))


def worth(objective: SoftmaxObjective) -> float:
    """About how many passes over all rows take as long as learning an inverse Hessian does."""
    n_features, n_rows = objective.n_features, len(objective.codes)
    tall = _TALL * n_features <= n_rows
    cubes = 4 * (objective.n_rows if tall else 4) * n_features**2 * min(n_features, n_rows)
    squares = 2 * (objective.n_rows if tall else 1) * n_features**2 * min(n_rows, LEAST_ROWS * n_features)
    return (cubes + squares) / (8 * n_rows * n_features * objective.n_rows * len(objective.totals))


def _probabilities(z: NDArray[np.floating], points: Doubles, n_classes: int) -> Doubles:
    """(n, n_classes), the mean over the problems."""
    from scipy import special

    total = np.zeros((len(z), n_classes))
    for point in points:
        scores = z @ point[:, :-1].T.astype(z.dtype) + point[:, -1]
        if len(point) < n_classes:
            scores = np.concatenate([np.zeros_like(scores), scores], axis=1)
        total += special.softmax(scores, axis=1)
    return total / len(points)


def _blocks(z: NDArray[np.floating], p: Doubles, omega: Doubles, penalty: float) -> BlockHessian:
    from scipy import linalg

    n_features = z.shape[1]
    padded = np.concatenate([z, np.ones((len(z), 1), z.dtype)], axis=1)
    inverses = np.empty((p.shape[1], n_features + 1, n_features + 1), np.float32)
    diagonal = np.arange(n_features + 1)
    for k in range(p.shape[1]):
        rows = padded * np.sqrt(omega * p[:, k] * (1 - p[:, k])).astype(z.dtype)[:, None]
        block = (rows.T @ rows).astype(np.float64)
        block[diagonal, diagonal] += 1e-7 * max(np.trace(block) / len(block), 1e-30)
        block[diagonal[:-1], diagonal[:-1]] += penalty
        block[-1, -1] += 1e-6 * penalty
        inverse = linalg.cho_solve(linalg.cho_factor(block, lower=True), np.eye(len(block)))
        inverses[k] = (inverse + inverse.T) / 2
    return BlockHessian(inverses, shifts_nothing=p.shape[1] > 1)
