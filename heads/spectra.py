"""The spectrum of a scatter matrix, from the matrix or from the rows: eigenvalues and eigenvectors out, in float64."""

from __future__ import annotations

import numpy as np

from heads.predictors import Doubles
from heads.standardization import Floats

Spectrum = tuple[Doubles, Doubles]
_ROWS = 4096
_NOISE = 1e-10  # of the largest direction: what float64 sums over rows cannot tell from nothing


def spectrum_of_scatter(scatter: Doubles, *, largest: float | None = None) -> Spectrum:
    """Eigenvalues (r,), ascending, and eigenvectors (D, r) of a symmetric matrix (D, D).

    Only the r directions whose value is more than noise are kept: beyond 1e-10 of `largest`, by default the largest
    eigenvalue. Give it where the matrix is a difference of larger ones.
    """
    values, vectors = np.linalg.eigh(scatter)
    kept = values > _NOISE * max(values.max(initial=0.0), largest or 0.0)
    return values[kept], np.ascontiguousarray(vectors[:, kept])


def spectrum_of_rows(off: Doubles) -> Spectrum:
    """The same for the scatter off.T @ off of centred rows (N, D) with N < D, without ever forming it."""
    _, singular, right = np.linalg.svd(off, full_matrices=False)
    values = singular[::-1] ** 2
    kept = values > _NOISE * values.max(initial=0.0)
    return values[kept], np.ascontiguousarray(right[::-1][kept].T)


def spectrum_about_mean(X: Floats, weights: Doubles | None = None) -> Spectrum:
    """The spectrum of the scatter of X (N, D) about its mean, each row counting `weights` (N,)."""
    total = len(X) if weights is None else weights.sum()
    center = X.mean(axis=0, dtype=np.float64) if weights is None else weights @ X / total
    root = None if weights is None else np.sqrt(weights)[:, None]
    if len(X) < X.shape[1]:
        off = np.subtract(X, center, dtype=np.float64)
        return spectrum_of_rows(off if root is None else off * root)
    scatter = np.zeros((X.shape[1], X.shape[1]))
    for start in range(0, len(X), _ROWS):
        off = X[start : start + _ROWS] - center
        if root is not None:
            off *= root[start : start + _ROWS]
        scatter += off.T @ off
    return spectrum_of_scatter(scatter)
