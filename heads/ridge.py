"""Ridge on class targets for every penalty at once, with exact leave-one-out predictions: rows in, weights out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heads.features import Features, as_features
from heads.fitting import Params, Task, check_weights
from heads.predictors import Doubles, Scores
from heads.standardization import Labels
from heads.summaries import Summary, left_out_dtype, standardized_blocks, summary


def ridge_solver(rows: Summary) -> Callable[[Params], tuple[Doubles, Doubles]]:
    """Least squares on targets -1 and 1 with penalty alpha, as in RidgeClassifier, intercept not penalised.

    A view of an image counts 1 / n_views, so that alpha means the same however many there are.
    """
    values, vectors = rows.total
    rotated, offset = _rotated(rows, vectors)
    center = rows.center

    def solve(params: Params) -> tuple[Doubles, Doubles]:
        weight = (vectors @ (rotated / (values + rows.n_views * params["alpha"])[:, None])).T
        return weight, offset - weight @ center

    return solve


def ridge_left_out(rows: Summary) -> Callable[[list[Params], Scores, Labels, Doubles], Scores]:
    """What predicts each training row as if it had been left out: (A, n, P), of A candidates and a block of n rows.

    The block is Z (n, D), float32 or float64, and computed in that; its rows' codes are (n,) in 0..P-1, and what they
    count is (n,). With the leverage h of a row, its target t and its prediction f by the fit on all rows, the fit
    without it predicts (f - h t) / (1 - h) (Cook and Weisberg 1982, section 2.2). In the eigenbasis of the scatter the
    leverages cost one product of N x D x D for all penalties together.
    """
    values, vectors = rows.total
    rotated, offset = _rotated(rows, vectors)
    center, total, n_present = rows.center, rows.weights.sum(), len(rows.present)

    def leave(chain: list[Params], Z: Scores, codes: Labels, weights: Doubles) -> Scores:
        shrunk = 1.0 / (values[:, None] + rows.n_views * np.array([params["alpha"] for params in chain]))  # (r, A)
        R = (Z - center.astype(Z.dtype)) @ vectors.astype(Z.dtype)  # (n, r)
        leverage = weights[:, None] * (np.square(R) @ shrunk.astype(Z.dtype) + 1.0 / total)  # (n, A)
        coef = (rotated[:, None] * shrunk[:, :, None]).reshape(len(values), -1)  # (r, A * P)
        f = (R @ coef.astype(Z.dtype)).reshape(len(Z), -1, n_present) + offset
        # a row that alone holds a direction without penalty has leverage 1: without it that direction is not there
        rest = np.maximum(1.0 - leverage, 1e-12)[:, :, None]
        f += leverage[:, :, None] / rest * (f + 1.0)  # as if every target were -1
        own = np.arange(len(Z))
        f[own, :, codes] -= 2.0 * leverage / rest[:, :, 0]
        return f.transpose(1, 0, 2)

    return leave


class RidgePath:
    """Ridge classification with every penalty of a grid, and the exact leave-one-out prediction of every row.

    As RidgeClassifierCV of scikit-learn, which decomposes the rows where this decomposes their scatter in one pass and
    takes the leverages from a second one, in blocks. `fit` learns, with A penalties, P classes and N rows of D:
    `classes_` (P,), `coefs_` (A, P, D), `intercepts_` (A, P), `loo_predictions_` (A, N, P), float32 where N > 16,384,
    `loo_mse_` (A,), the mean squared error of the predictions against targets of -1 and 1, `loo_accuracy_` (A,), both
    weighted as the rows are, and `alpha_`, of least error.
    """

    def __init__(self, *, alphas: Sequence[float] = (0.1, 1.0, 10.0)) -> None:
        self.alphas = alphas

    def fit(
        self, X: Features | NDArray[np.floating[Any]], y: NDArray[Any], sample_weight: Doubles | None = None
    ) -> RidgePath:
        """Learn from X, read as float32 (N, D) and not standardised, and the classes y (N,).

        Raises ValueError where a weight is negative or the rows of a class have weight 0 together.
        """
        X = as_features(X)
        self.classes_, codes = np.unique(y, return_inverse=True)
        codes = codes.astype(np.int64)
        if sample_weight is not None:
            check_weights(sample_weight, codes, self.classes_)
        task = Task(X=X, y=codes, n_classes=len(self.classes_), weights=sample_weight)
        rows = summary(task, standardize=False)
        chain: list[Params] = [{"alpha": float(alpha)} for alpha in self.alphas]
        solve, leave = ridge_solver(rows), ridge_left_out(rows)
        solved = [solve(params) for params in chain]
        self.coefs_ = np.stack([weight for weight, _ in solved])
        self.intercepts_ = np.stack([bias - weight @ rows.mean for weight, bias in solved])
        weights = np.ones(len(X)) if sample_weight is None else sample_weight
        share = weights / weights.sum()
        dtype = left_out_dtype(rows, len(X))
        self.loo_predictions_ = np.empty((len(chain), len(X), len(self.classes_)), dtype)
        self.loo_mse_, self.loo_accuracy_ = np.zeros(len(chain)), np.zeros(len(chain))
        for at, Z in standardized_blocks(task, rows, dtype):
            found, code = leave(chain, Z, codes[at], weights[at]), codes[at]
            self.loo_predictions_[:, at] = found
            # the squared distance from targets that are all -1, less what the one of 1 makes it too large
            squares = np.einsum("anp,anp->an", found + 1, found + 1) - 4 * found[:, np.arange(len(code)), code]
            self.loo_mse_ += squares @ share[at] / len(self.classes_)
            self.loo_accuracy_ += (found.argmax(axis=2) == code) @ share[at]
        self.alpha_ = float(self.alphas[int(self.loo_mse_.argmin())])
        return self


def _rotated(rows: Summary, vectors: Doubles) -> tuple[Doubles, Doubles]:
    """Centred rows times targets of -1 and 1 in the eigenbasis, (r, P), and the targets' weighted mean (P,)."""
    # the rows of the other classes add up to minus those of the class
    cross = 2.0 * rows.weights[:, None] * (rows.means - rows.center)
    return vectors.T @ cross.T, 2.0 * rows.weights / rows.weights.sum() - 1.0
