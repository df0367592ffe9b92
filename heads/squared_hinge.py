"""Linear SVMs with squared hinge loss, one class against the rest, all at once: rows in, weights and biases out."""

from __future__ import annotations

import numpy as np

from heads.predictors import Doubles
from heads.spectra import Spectrum
from heads.standardization import Floats, Labels

_MAX_ITER = 1000
_TOLERANCE = 2e-4  # of the largest component of the scaled gradient of the mean loss
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
    and a message that is empty when the solver converged. `start` warm-starts. This is LinearSVC's loss; liblinear
    takes minutes for one C on tens of thousands of rows. What makes L-BFGS fast is that it works in the eigenbasis of
    the scatter, where each direction is scaled by the curvature it would have if a fixed share of the rows were inside
    the margin.
    """
    from scipy.optimize import minimize

    count = None if weights is None else weights.astype(np.float32)[:, None]
    n = float(len(X) if weights is None else weights.sum())
    values, vectors = eigen
    columns = [1] if n_present == 2 else list(range(n_present))  # of two classes one is the other's negative
    signs = np.where(codes[:, None] == np.array(columns), np.float32(1), np.float32(-1))
    penalty = 1.0 / (C * n)
    steps = 1.0 / np.sqrt(penalty + 2.0 * _ACTIVE * values / n)
    bias_step = 1.0 / np.sqrt(2.0 * _ACTIVE)
    size = (len(columns), len(values) + 1)

    def plain(flat: Doubles) -> tuple[Doubles, Doubles]:
        U = flat.reshape(size)
        return (U[:, :-1] * steps) @ vectors.T, U[:, -1] * bias_step

    def objective(flat: Doubles) -> tuple[float, Doubles]:
        weight, bias = plain(flat)
        slack = X @ weight.T.astype(np.float32)
        slack += bias.astype(np.float32)
        slack *= signs
        np.subtract(1, slack, out=slack)
        np.maximum(slack, 0, out=slack)
        pull = slack if count is None else slack * count
        loss = 0.5 * penalty * np.sum(weight**2) + np.einsum("ij,ij->", slack, pull, dtype=np.float64) / n
        pull *= signs
        gradient = np.empty(size)
        gradient[:, :-1] = (penalty * weight - (2.0 / n) * (X.T @ pull).T) @ vectors * steps
        gradient[:, -1] = (-2.0 / n) * pull.sum(axis=0, dtype=np.float64) * bias_step
        return float(loss), gradient.ravel()

    first = np.zeros(size)
    if start is not None:
        first[:, :-1] = start[columns, :-1] @ vectors / steps
        first[:, -1] = start[columns, -1] / bias_step
    options = {"maxiter": _MAX_ITER, "maxcor": 20, "gtol": _TOLERANCE, "ftol": 1e-9}
    result = minimize(objective, first.ravel(), jac=True, method="L-BFGS-B", options=options)
    weight, bias = plain(result.x)
    found = np.concatenate([weight, bias[:, None]], axis=1)
    if n_present == 2:
        found = np.concatenate([-found, found])
    # where float32 sums leave the line search nothing to gain, a small gradient is as far as it goes
    converged = result.status == 0 or np.abs(result.jac).max() < 5 * _TOLERANCE
    message = "" if converged else f"L-BFGS stopped after {result.nit} iterations: {result.message}"
    return found, message
