"""Power laws that are known are found, scipy finds no better one, and forecasts hold what they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import least_squares

from heads.evidence.power_law import fit_power_law

SIZES = np.array([100, 200, 400, 800, 1600])


@pytest.mark.parametrize(("a", "b", "c"), [(2.0, 0.5, 0.05), (1.0, 0.25, 0.0), (40.0, 1.5, 0.1)])
def test_a_law_without_noise_is_found(a: float, b: float, c: float) -> None:
    law = fit_power_law(SIZES, a * SIZES**-b + c, n_test=1000)
    assert law is not None
    assert (law.a, law.b, law.c) == (pytest.approx(a, rel=0.1), pytest.approx(b, rel=0.02), pytest.approx(c, abs=0.003))
    assert law.residual_sd < 2e-4
    assert law.twice.n == 3200
    assert law.twice.accuracy == pytest.approx(1 - (a * 3200**-b + c), abs=1e-3)
    assert law.twice.low < law.twice.accuracy < law.twice.high
    np.testing.assert_allclose(law.predict(np.array([100.0, 3200.0]))[1], 1 - law.twice.accuracy)


def test_scipy_finds_no_better_law() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        errors = rng.binomial(500, 2 * SIZES**-0.5 + 0.05) / 500
        p = (errors * 500 + 1) / 502
        scale = np.sqrt(p * (1 - p) / 500)
        law = fit_power_law(SIZES, errors, n_test=500)
        assert law is not None
        mine = np.sum(((law.predict(SIZES) - errors) / scale) ** 2)

        def off(x: np.ndarray, errors: np.ndarray = errors, scale: np.ndarray = scale) -> np.ndarray:
            return (x[0] * (SIZES / 1600) ** -x[1] + x[2] - errors) / scale

        starts = [(0.1, b, c) for b in (0.1, 0.5, 2.0) for c in (0.0, 0.05)]
        fits = [least_squares(off, start, bounds=([0, 0, 0], [1, 4, 1])) for start in starts]
        assert mine <= min(2 * fit.cost for fit in fits) * (1 + 1e-3) + 1e-9


def test_errors_that_do_not_fall_are_a_flat_law() -> None:
    law = fit_power_law(SIZES, [0.1, 0.12, 0.11, 0.13, 0.14], n_test=1000)
    assert law is not None
    assert law.a == 0
    assert law.c == pytest.approx(0.12, abs=0.01)


def test_no_error_at_all_is_no_certainty() -> None:
    law = fit_power_law(SIZES, np.zeros(5), n_test=100)
    assert law is not None
    assert (law.twice.accuracy, law.twice.high) == (1, 1)
    assert law.twice.low < 0.995


@pytest.mark.parametrize("sizes", [[100], [100, 200], [100, 100, 200, 200]])
def test_fewer_than_three_sizes_are_no_law(sizes: list[int]) -> None:
    assert fit_power_law(sizes, [0.1] * len(sizes), n_test=100) is None


def test_forecasts_repeat_and_seeds_and_test_rows_narrow_them() -> None:
    rng = np.random.default_rng(1)
    errors = np.clip((2 * SIZES**-0.5 + 0.05)[:, None] + rng.normal(0, 0.02, (5, 4)), 0, 1)
    sizes = np.repeat(SIZES, 4)
    law = fit_power_law(sizes, errors.ravel(), n_test=200)
    assert law is not None
    order = rng.permutation(20)
    shuffled = fit_power_law(sizes[order], errors.ravel()[order], n_test=200)
    assert fit_power_law(sizes, errors.ravel(), n_test=200) == law
    assert shuffled is not None
    assert shuffled.twice.accuracy == pytest.approx(law.twice.accuracy)

    def width(spread: float, n_test: int) -> float:
        made = errors.mean(axis=1, keepdims=True) + spread * (errors - errors.mean(axis=1, keepdims=True))
        found = fit_power_law(sizes, made.ravel(), n_test=n_test)
        assert found is not None
        return found.twice.high - found.twice.low

    assert width(1.0, 200) > 1.5 * width(1.0, 100_000)
    assert width(1.0, 100_000) > 1.5 * width(0.1, 100_000)
