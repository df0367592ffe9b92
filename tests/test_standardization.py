"""Column statistics: those of two passes in float64, in one pass over any order of rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stored_features import half, split_of

from heads.cached_features import CachedFeatures
from heads.features import ArrayFeatures
from heads.standardization import column_statistics


@pytest.mark.parametrize("order", ["as drawn", "sorted"])
def test_column_statistics_are_those_of_two_passes_in_float64(order: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((20_000, 8)).astype(np.float32)
    X[:, 1] = 1e4 + 0.05 * X[:, 1]  # a huge mean, hardly any variance
    X[:, 2] = 3.3  # constant
    X[:, 3] = 0.0
    X[:, 4] *= 1e-20  # tiny, and not constant
    X[:, 5] = X[:, 5] * 1e15
    X[:, 6] = rng.random(20_000) < 1e-3  # rare
    X[:, 7] = np.float32(7) + np.float32(1e-6) * (np.arange(20_000) % 2)  # rounding
    if order == "sorted":  # the first rows are as far from the mean as can be
        X = np.sort(X, axis=0)
    exact = X.astype(np.float64)
    mean, scale = column_statistics(ArrayFeatures(X))
    expected = exact.std(axis=0)
    expected[[2, 3, 7]] = 1.0
    np.testing.assert_allclose(mean, exact.mean(axis=0), rtol=1e-6, atol=1e-5 * exact.std(axis=0).min())
    np.testing.assert_allclose(scale, expected, rtol=1e-6)
    assert (mean.dtype, scale.dtype) == (np.float32, np.float32)
    assert (mean[[2, 3]] == X[0, [2, 3]]).all()

    halves = half(3000, 5)
    halves[:, 1] = 2048 + halves[:, 1]
    halves[:, 2] = np.float16(0.1)
    for given in (ArrayFeatures(halves), CachedFeatures(split_of(tmp_path / "a", halves))):
        mean, scale = column_statistics(given)
        exact = halves.astype(np.float64)
        np.testing.assert_allclose(mean, exact.mean(axis=0), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(scale, np.where(exact.std(axis=0) > 1e-9, exact.std(axis=0), 1), rtol=1e-6)


def test_one_row_and_few_rows_have_statistics() -> None:
    mean, scale = column_statistics(ArrayFeatures(np.array([[3.3, -1.0]], np.float32)))
    np.testing.assert_array_equal(mean, np.array([3.3, -1.0], np.float32))
    np.testing.assert_array_equal(scale, [1, 1])
    views = half(30, 3, 4)
    mean, scale = column_statistics(ArrayFeatures(views).expanded())
    np.testing.assert_allclose(mean, views.reshape(-1, 4).mean(axis=0, dtype=np.float64), rtol=1e-6)
