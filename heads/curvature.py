"""Logistic problems at some points in; an inverse Hessian that is nearly theirs, to precondition Newton's systems, out.

It is learned for the mean over the problems and from the rows that bend most, for it need not be exact. Of rows drawn
evenly it would see hardly any that do: those whose class is certain bend nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from heads.blas_threads import BlasThreads
from heads.predictors import Doubles
from heads.softmax_objective import SoftmaxObjective

LEAST_ROWS = 8  # a feature that each class is learned from
OPERATIONS = 8e10  # that may go into it, of which more rows are looked at: half a second or so
BLOCK_BYTES = 1 << 28  # of the inverses of all classes, up to which classes have one each
CANDIDATE_BYTES = 1 << 28  # of the rows, and of their probabilities, that rows are drawn from


class Block(Protocol):
    """The inverse Hessian of one class."""

    def solve(self, gradients: NDArray[np.float32]) -> NDArray[np.float32]:
        """The steps (n, D + 1) for gradients (n, D + 1)."""


@dataclass(frozen=True, eq=False)
class DenseBlock:
    """`inverse` is float32 (D + 1, D + 1), symmetric."""

    inverse: NDArray[np.float32]

    def solve(self, gradients: NDArray[np.float32]) -> NDArray[np.float32]:
        return gradients @ self.inverse


@dataclass(frozen=True, eq=False)
class ThinBlock:
    """The inverse of scale^-2 + what few rows add, by the Sherman-Morrison-Woodbury formula.

    Attributes:
        scale: float32 (D + 1,); rows: (n, D + 1), times it; inner: the inverse of 1 + rows rows^T, (n, n).
    """

    scale: NDArray[np.float32]
    rows: NDArray[np.float32]
    inner: NDArray[np.float32]

    def solve(self, gradients: NDArray[np.float32]) -> NDArray[np.float32]:
        scaled = (self.scale * gradients).T
        return self.scale * (scaled - self.rows.T @ (self.inner @ (self.rows @ scaled))).T


class InverseHessian(Protocol):
    """What turns gradients into steps."""

    def solve(self, gradients: Doubles, penalties: Doubles) -> Doubles:
        """The steps (n, R, D + 1), float64, that the gradients of problems with these penalties (n,) ask for."""


@dataclass(frozen=True, eq=False)
class BlockHessian:
    """Each class by itself: the mean of p_k (1 - p_k) z z^T + penalty, inverted.

    `shifts_nothing`: whether the same for all classes is taken off steps, as of softmax, which it does not change;
    `threads`: of the products.
    """

    blocks: tuple[Block, ...]
    shifts_nothing: bool
    threads: BlasThreads

    def solve(self, gradients: Doubles, penalties: Doubles) -> Doubles:
        """Each class's inverse is read once for all problems."""
        shift = gradients.mean(axis=1, keepdims=True) if self.shifts_nothing else 0.0
        single = (gradients - shift).astype(np.float32)
        steps = np.empty_like(gradients)
        with self.threads.limited():  # several would spin on into the next pass over the rows
            for k, block in enumerate(self.blocks):
                steps[:, k] = block.solve(single[:, k])
        return steps - steps.mean(axis=1, keepdims=True) if self.shifts_nothing else steps


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

    def solve(self, gradients: Doubles, penalties: Doubles) -> Doubles:
        return np.stack([self._step(own, float(penalty)) for own, penalty in zip(gradients, penalties, strict=True)])

    def _step(self, gradient: Doubles, penalty: float) -> Doubles:
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
    n_rows, n_features, R = len(objective.codes), objective.n_features, objective.n_rows
    n_candidates = CANDIDATE_BYTES // (4 * max(3 * objective.n_classes, 0 if objective.is_kept else n_features))
    z, chosen = objective.sample(min(n_rows, n_candidates))
    omega = objective.weights[chosen].sum(axis=1) / objective.weights[chosen].sum()
    p = _probabilities(z, points, objective.n_classes)[:, objective.n_classes - R :]
    if R * (n_features + 1) ** 2 * 4 <= BLOCK_BYTES:
        n = _n_learned(objective)
        different = p.T if points.any() else p.T[:1]  # from nothing, all classes bend alike
        taken = 8 * n * (n_features + 1) + 32 * (n_features + 1) ** 2  # bytes, while a class is learned
        learned = objective.threads.map(
            lambda own: _block(z, own * (1 - own) * omega, n, penalty), list(different), n_bytes=taken
        )
        blocks = tuple(learned)
        return BlockHessian(blocks * (R // len(blocks)), R > 1, objective.threads)
    classes = np.diag(omega @ p) - (p * omega[:, None]).T @ p
    class_values, class_vectors = np.linalg.eigh(classes)
    class_values = np.maximum(class_values, 1e-3 * max(class_values[-1], 1e-30))
    rows = _bending(z, omega * (1 - (p**2).sum(axis=1)) / class_values.sum(), LEAST_ROWS * n_features)
    if n_features < len(rows):
        values, vectors = np.linalg.eigh((rows.T @ rows).astype(np.float64))
        return KroneckerHessian(class_values, class_vectors, np.maximum(values, 0.0), vectors)
    _, singular, right = np.linalg.svd(rows, full_matrices=False)
    return KroneckerHessian(class_values, class_vectors, singular.astype(np.float64) ** 2, right.T.astype(np.float64))


def worth(objective: SoftmaxObjective) -> float:
    """About how many passes over all rows take as long as learning an inverse Hessian does."""
    n_features, n = objective.n_features, _n_learned(objective)
    least = min(n, n_features)
    operations = 2 * n * n_features * least + 2 * least**3  # a class; two a second to one of a pass
    return operations / 2 / (4 * len(objective.codes) * n_features * len(objective.totals))


def spread_rows(weights: Doubles, n: int) -> tuple[NDArray[np.int64], Doubles]:
    """About n rows (ascending) and their inverse chances of being among them, which are in proportion to the weights.

    Systematic sampling with unequal probabilities (Madow 1949); rows so heavy that their chance would be above 1 are
    all in. The sum over the rows of anything, times weight and inverse chance, estimates the sum over all of them.
    """
    heavy_first = np.sort(weights)[::-1]
    left = np.cumsum(heavy_first[::-1])[::-1]  # from each on
    if n >= len(weights) or left[n] <= 0:
        rows = np.flatnonzero(weights > 0)
        return rows, np.ones(len(rows))
    n_sure = int(np.argmax((n - np.arange(n)) * heavy_first[:n] < left[:n])) if n > 1 else 0
    chances = np.minimum(1.0, (n - n_sure) * weights / left[n_sure])
    ticks = np.floor(np.cumsum(chances) + 0.5)
    rows = np.flatnonzero(np.diff(ticks, prepend=0.0) > 0)
    return rows, 1 / chances[rows]


def _n_learned(objective: SoftmaxObjective) -> int:
    """Rows that each class is learned from."""
    n_features = objective.n_features
    affordable = int(OPERATIONS / (2 * objective.n_rows * n_features**2))
    return min(len(objective.codes), max(LEAST_ROWS * n_features, affordable))


def _bending(z: NDArray[np.floating], weights: Doubles, n: int) -> NDArray[np.floating]:
    """About n rows so scaled that the sum of their squares is about the weighted sum of all rows' squares."""
    weights = np.maximum(weights, 0.0)
    rows, inverse_chances = spread_rows(weights, n)
    return z[rows] * np.sqrt(weights[rows] * inverse_chances).astype(z.dtype)[:, None]


def _block(z: NDArray[np.floating], weights: Doubles, n: int, penalty: float) -> Block:
    from scipy.linalg import lapack

    n_features = z.shape[1]
    weights = np.maximum(weights, 0.0)
    chosen, inverse_chances = spread_rows(weights, n)
    rows = np.empty((len(chosen), n_features + 1), z.dtype)
    rows[:, :-1], rows[:, -1] = z[chosen], 1
    rows *= np.sqrt(weights[chosen] * inverse_chances).astype(z.dtype)[:, None]
    # intercepts have no penalty: a thousandth of their own curvature keeps it solvable
    diagonal = np.append(np.full(n_features, penalty), max(1e-3 * weights.sum(), 1e-6 * penalty))
    if len(rows) < n_features // 2:
        scale = (diagonal**-0.5).astype(np.float32)
        rows = rows.astype(np.float32) * scale
        inner = (rows @ rows.T).astype(np.float64)
        inner[np.diag_indices(len(inner))] += 1
        return ThinBlock(scale, rows, np.linalg.inv(inner).astype(np.float32))
    with np.errstate(over="ignore"):  # nor is anything learned from such rows, which the gaps show
        block = (rows.T @ rows).astype(np.float64)
    block[np.diag_indices(len(block))] += diagonal
    mean = max(np.trace(block) / len(block), 1e-30)
    for power in range(-7, 4):  # float32 may have lost what is small beside the largest
        block[np.diag_indices(len(block))] += 10.0**power * mean
        factor, failed = lapack.dpotrf(block, lower=1)
        if not failed:
            break
    assert not failed, "the diagonal is above the trace by then, so that something is not finite"
    lower, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)
    single = np.tril(lower).astype(np.float32)
    return DenseBlock(single + np.tril(single, -1).T)


def _probabilities(z: NDArray[np.floating], points: Doubles, n_classes: int) -> NDArray[np.float32]:
    """(n, n_classes), the mean over the problems."""
    from scipy import special

    total = np.zeros((len(z), n_classes), np.float32)
    for point in points:
        scores = (z @ point[:, :-1].T.astype(z.dtype) + point[:, -1].astype(z.dtype)).astype(np.float32)
        if len(point) < n_classes:
            scores = np.concatenate([np.zeros_like(scores), scores], axis=1)
        total += special.softmax(scores, axis=1)
    return (total / len(points)).astype(np.float32)
