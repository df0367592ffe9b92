"""Column means and scales, learned on training rows and applied to any: features in, float32 arrays out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from heads.features import Features

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

_FIRST = 1024  # rows whose mean everything is summed about
_ROWS = 256  # turned into float64 at once, so that they stay in the cache of the processor


def column_statistics(X: Features) -> tuple[Floats, Floats]:
    """Mean and scale (standard deviation, n in the denominator) of each column, summed in float64 in one pass.

    X is (n_samples, D); both results are float32 (D,). A column that is constant up to float32 rounding gets scale 1,
    so that standardising it gives zeros instead of amplified noise.

    The sums are about the mean of the first m rows. If that lies d off the mean of all, the variance is at least
    d² m / n, so that what the difference of the sums loses is at most a factor n / m of float64's 16 digits.
    """
    n_samples, n_features = X.shape
    assert n_samples
    about = X.block(0, min(_FIRST, n_samples)).mean(axis=0, dtype=np.float64)
    total, squares = np.zeros(n_features), np.zeros(n_features)
    for _, block in X.blocks():
        for start in range(0, len(block), _ROWS):
            off = block[start : start + _ROWS] - about
            total += off.sum(axis=0)
            squares += np.einsum("ij,ij->j", off, off)
    off_mean = total / n_samples
    mean = about + off_mean
    scale = np.sqrt(np.maximum(squares / n_samples - off_mean**2, 0.0))
    scale[scale <= 1e-6 * np.abs(mean)] = 1.0
    scale[scale < np.finfo(np.float32).tiny] = 1.0
    return mean.astype(np.float32), scale.astype(np.float32)


def standardized(X: Floats, mean: Floats, scale: Floats) -> Floats:
    """(X - mean) / scale, float32, a new array of the shape of X."""
    Z = np.subtract(X, mean, dtype=np.float32)
    Z /= scale
    return Z
