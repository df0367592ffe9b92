"""Column means and scales, learned on training rows and applied to any: features in, float32 arrays out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

_ROWS = 8192


def column_statistics(X: Floats) -> tuple[Floats, Floats]:
    """Mean and scale (standard deviation, n in the denominator) of each column, summed in float64.

    X is (n_samples, D); both results are float32 (D,). A column that is constant up to float32 rounding gets scale 1,
    so that standardising it gives zeros instead of amplified noise.
    """
    n_samples, n_features = X.shape
    total = np.zeros(n_features)
    for start in range(0, n_samples, _ROWS):
        total += X[start : start + _ROWS].sum(axis=0, dtype=np.float64)
    mean = total / n_samples
    squares = np.zeros(n_features)
    for start in range(0, n_samples, _ROWS):
        off = X[start : start + _ROWS] - mean
        squares += np.einsum("ij,ij->j", off, off)
    scale = np.sqrt(squares / n_samples)
    scale[scale <= 1e-6 * np.abs(mean)] = 1.0
    scale[scale < np.finfo(np.float32).tiny] = 1.0
    return mean.astype(np.float32), scale.astype(np.float32)


def standardized(X: Floats, mean: Floats, scale: Floats) -> Floats:
    """(X - mean) / scale, float32, a new array of the shape of X."""
    Z = np.subtract(X, mean, dtype=np.float32)
    Z /= scale
    return Z
