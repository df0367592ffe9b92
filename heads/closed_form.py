"""Classifiers that one eigendecomposition solves for every candidate: ridge, lda and centroid; a task in, heads out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from heads.fitting import Fitted, Params, Task, Trial
from heads.predictors import Doubles, LinearHead, class_rows
from heads.standardization import Floats, Labels

_ROWS = 8192
Solve = Callable[[Params], tuple[Doubles, Doubles]]


def decomposed(Z: Floats, centers: Doubles, codes: Labels) -> tuple[Doubles, Doubles]:
    """Eigenvalues (r,) and eigenvectors (D, r) of the scatter of Z (N, D) about each row's own centre, in float64.

    `centers` is (P, D), `codes` (N,) names each row's centre. Only the r directions that hold any scatter are returned.
    """
    n_samples, n_features = Z.shape
    if n_samples < n_features:
        _, singular, right = np.linalg.svd(Z - centers[codes], full_matrices=False)
        values, vectors = singular**2, right.T
    else:
        scatter = np.zeros((n_features, n_features))
        for start in range(0, n_samples, _ROWS):
            rows = slice(start, start + _ROWS)
            off = Z[rows] - centers[codes[rows]]
            scatter += off.T @ off
        values, vectors = np.linalg.eigh(scatter)
    kept = values > values.max(initial=0.0) * 1e-10
    return values[kept], np.ascontiguousarray(vectors[:, kept])


def class_means(Z: Floats, codes: Labels, n_present: int) -> tuple[Doubles, Doubles]:
    """Mean row (P, D) and number of rows (P,) of each class, float64."""
    counts = np.bincount(codes, minlength=n_present).astype(np.float64)
    means = np.stack([Z[codes == c].mean(axis=0, dtype=np.float64) for c in range(n_present)])
    return means, counts


def ridge_solver(task: Task) -> Solve:
    """Least squares on targets -1 and 1 with penalty alpha, as in RidgeClassifier, intercept not penalised."""
    Z, codes = task.Z, task.codes
    targets = np.where(codes[:, None] == np.arange(len(task.present)), 1.0, -1.0)
    center, offset = Z.mean(axis=0, dtype=np.float64), targets.mean(axis=0)
    values, vectors = decomposed(Z, center[None], np.zeros_like(codes))
    cross = np.zeros((Z.shape[1], targets.shape[1]))
    for start in range(0, len(Z), _ROWS):
        rows = slice(start, start + _ROWS)
        cross += (Z[rows] - center).T @ (targets[rows] - offset)
    rotated = vectors.T @ cross

    def solve(params: Params) -> tuple[Doubles, Doubles]:
        weight = (vectors @ (rotated / (values + params["alpha"])[:, None])).T
        return weight, offset - weight @ center

    return solve


def lda_solver(task: Task) -> Solve:
    """Linear discriminants; the pooled covariance S is shrunk to (1 - s) S + s mu I, mu the mean variance.

    As LinearDiscriminantAnalysis(solver="lsqr", shrinkage=s) of scikit-learn, priors being the classes' shares.
    """
    means, counts = class_means(task.Z, task.codes, len(task.present))
    values, vectors = decomposed(task.Z, means, task.codes)
    variances = values / len(task.Z)
    mu = variances.sum() / task.Z.shape[1]
    inside = means @ vectors
    outside = means - inside @ vectors.T

    def solve(params: Params) -> tuple[Doubles, Doubles]:
        s = params["shrinkage"]
        weight = (inside / ((1 - s) * variances + s * mu + 1e-12)) @ vectors.T
        if s * mu > 0:
            weight += outside / (s * mu)
        return weight, np.log(counts / counts.sum()) - 0.5 * np.einsum("ij,ij->i", means, weight)

    return solve


def centroid_solver(task: Task) -> Solve:
    """Nearest class mean, Euclidean in standardised features: score = z . m - |m|^2 / 2."""
    means, _ = class_means(task.Z, task.codes, len(task.present))
    return lambda params: (means, -0.5 * np.einsum("ij,ij->i", means, means))


class ClosedForm:
    """A linear head for each candidate from one solver, which does the work that all candidates share."""

    stops_early = False

    def __init__(
        self,
        solver: Callable[[Task], Solve],
        grid: list[Params],
        *,
        probabilistic: bool,
        natural_ends: dict[str, tuple[float, ...]],
    ) -> None:
        self.solver, self.grid, self.probabilistic, self.natural_ends = solver, grid, probabilistic, natural_ends

    def chains(self, task: Task, n_total: int) -> list[list[Params]]:
        return [self.grid]

    def search(self, chain: list[Params], task: Task, X_val: Floats, y_val: Labels) -> Iterator[Trial]:
        solve = self.solver(task)
        for params in chain:
            fitted = self._fitted(solve, params, task)
            yield Trial(params=params, fitted=fitted, scores=fitted.head.scores(X_val))

    def fit(self, params: Params, task: Task) -> Fitted:
        return self._fitted(self.solver(task), params, task)

    def note(self, params: Params, task: Task) -> str:
        return ""

    def _fitted(self, solve: Solve, params: Params, task: Task) -> Fitted:
        mean, scale = task.statistics
        weight, bias = class_rows(*solve(params), task.present, task.n_classes)
        return Fitted(
            head=LinearHead(mean=mean, scale=scale, weight=weight, bias=bias, probabilistic=self.probabilistic)
        )
