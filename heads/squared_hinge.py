"""Fit linear SVMs with squared hinge loss, one class against the rest, all classes at once."""

from __future__ import annotations

import numpy as np

from heads.duality_gaps import squared_hinge_gaps
from heads.predictors import Doubles
from heads.spectra import Spectrum
from heads.standardization import Floats, Labels

GAP = 1e-3
"""A class has converged if its objective is, by its duality gap, at most so much of itself above its minimum."""

_MAX_ITER = 1000
_TOLERANCE = 2e-4  # of the largest component of the scaled gradient of the mean loss
_STAGES = ((1.0, 1e-9), (1.0, 1e-7), (0.1, 1e-8), (0.01, 1e-9))  # shares of _TOLERANCE; decreases that end a stage
_ACTIVE = 0.1  # share of rows taken to be inside the margin when scaling


def squared_hinge(
    X: Floats,
    codes: Labels,
    n_present: int,
    *,
    C: float,
    eigen: Spectrum,
    weights: Doubles | None = None,
    start: Doubles | None = None,
) -> tuple[Doubles, str]:
    """Minimise |W|^2 / 2 + C * sum of weights * max(0, 1 - y f)^2 by L-BFGS.

    X is (N, M) float32, codes (N,) are in 0..n_present-1, `eigen` is `spectrum_about_mean(X, weights)`, `weights` (N,)
    default to 1. Returns weights and, in the last column, biases (which are not penalised), float64 (n_present, M + 1),
    and a message that is empty if every class converged (see `GAP`). `start` warm-starts. This is LinearSVC's loss;
    liblinear takes minutes for one C on tens of thousands of rows.

    L-BFGS stops at a small gradient of the mean loss, which is small at a large C far from the minimum, too: classes
    whose duality gap says so are continued, each relative to its own objective, with smaller tolerances.
    """
    columns = np.array([1] if n_present == 2 else range(n_present))  # of two classes one is the other's negative
    signs = np.where(codes[:, None] == columns, np.float32(1), np.float32(-1))
    found = np.zeros((len(columns), X.shape[1] + 1)) if start is None else start[columns].copy()
    total = float(len(X) if weights is None else weights.sum())
    gaps, values = np.full((2, len(columns)), np.inf)
    unfinished, n_iter = np.arange(len(columns)), 0
    for number, (share, least_decrease) in enumerate(_STAGES):
        some = signs[:, unfinished]
        found[unfinished], n = _minimised(
            X,
            some,
            found[unfinished],
            penalty=1 / (C * total),
            eigen=eigen,
            counts=None if weights is None else weights.astype(np.float32)[:, None],
            units=values[unfinished] / (C * total) if number else np.ones(len(columns)),
            options={
                "maxiter": _MAX_ITER - n_iter,
                "maxcor": 20,
                "gtol": share * _TOLERANCE,
                "ftol": least_decrease,
            },
        )
        n_iter += n
        at = found[unfinished, :-1], found[unfinished, -1]
        gaps[unfinished], values[unfinished] = squared_hinge_gaps(X, some, *at, C=C, row_weights=weights)
        unfinished = np.flatnonzero(~(gaps <= GAP))
        if not len(unfinished) or n_iter >= _MAX_ITER:
            break
    message = ""
    if len(unfinished):
        message = (
            f"L-BFGS stopped after {n_iter} iterations: the objective is at most {gaps.max():.1e} (relative) above its "
            f"minimum, expected {GAP:.0e}"
        )
    return (np.concatenate([-found, found]) if n_present == 2 else found), message


def _minimised(
    X: Floats,
    signs: Floats,
    start: Doubles,
    *,
    penalty: float,
    eigen: Spectrum,
    counts: Floats | None,
    units: Doubles,
    options: dict[str, float],
) -> tuple[Doubles, int]:
    """Weights and biases (K, M + 1) where L-BFGS stops, and its iterations.

    The objective is the sum over classes of the mean loss plus penalty |w|^2 / 2, each divided by its unit (K,). What
    makes L-BFGS fast is that it works in the eigenbasis of the scatter, where each direction is scaled by the curvature
    it would have if a fixed share of the rows were inside the margin.
    """
    from scipy.optimize import minimize

    values, vectors = eigen
    n = float(len(X) if counts is None else counts.sum(dtype=np.float64))
    size = (signs.shape[1], len(values) + 1)
    steps = np.append(1.0 / np.sqrt(penalty + 2.0 * _ACTIVE * values / n), 1.0 / np.sqrt(2.0 * _ACTIVE))
    scales = np.sqrt(units)[:, None] * steps

    def plain(flat: Doubles) -> tuple[Doubles, Doubles]:
        U = flat.reshape(size) * scales
        return U[:, :-1] @ vectors.T, U[:, -1]

    def objective(flat: Doubles) -> tuple[float, Doubles]:
        weight, bias = plain(flat)
        slack = X @ weight.T.astype(np.float32)
        slack += bias.astype(np.float32)
        slack *= signs
        np.subtract(1, slack, out=slack)
        np.maximum(slack, 0, out=slack)
        pull = slack if counts is None else slack * counts
        losses = np.einsum("ij,ij->j", slack, pull, dtype=np.float64) / n
        value = ((0.5 * penalty * (weight**2).sum(axis=1) + losses) / units).sum()
        pull *= signs
        gradient = np.empty(size)
        gradient[:, :-1] = (penalty * weight - (2.0 / n) * (X.T @ pull).T) @ vectors
        gradient[:, -1] = (-2.0 / n) * pull.sum(axis=0, dtype=np.float64)
        gradient *= scales / units[:, None]
        return float(value), gradient.ravel()

    first = np.concatenate([start[:, :-1] @ vectors, start[:, -1:]], axis=1) / scales
    result = minimize(objective, first.ravel(), jac=True, method="L-BFGS-B", options=options)
    weight, bias = plain(result.x)
    return np.concatenate([weight, bias[:, None]], axis=1), int(result.nit)
