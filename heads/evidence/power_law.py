"""Training sizes and error rates in; the power law through them, and what twice the data would bring, out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heads.predictors import Doubles

_EXPONENTS = np.concatenate([[0.0], np.geomspace(0.02, 4.0, 60)])
_ZOOMS = 2
_RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The `accuracy` (0..1) to expect of `n` training rows, and its 95 % interval."""

    n: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """Error rate = a * n ** -b + c, with a and c at least 0 and b in 0..4.

    `residual_sd` is the root mean square of what the law misses of the mean error of each size. `twice` is the forecast
    for twice the largest size.
    """

    a: float
    b: float
    c: float
    residual_sd: float
    twice: Forecast

    def predict(self, n: float | NDArray[Any]) -> Doubles:
        """The error rate, float64 of the shape of n, at n training rows."""
        return np.asarray(self.a * np.asarray(n, np.float64) ** -self.b + self.c)


def fit_power_law(
    sizes: Sequence[int] | NDArray[Any], errors: Sequence[float] | NDArray[Any], *, n_test: int, seed: int = 0
) -> PowerLaw | None:
    """Fit err(n) = a * n ** -b + c (Hestness et al. 2017, arXiv:1712.00409; Rosenfeld et al. 2020, arXiv:1909.12673).

    Least squares on the mean error of each size, weighted by one over the variance of a share of n_test rows. For a
    given b the law is linear in a and c, so that the search is over b alone and finds the best fit whatever the data.
    Where the errors do not fall, a is 0 and c their mean.

    The forecast's interval is of the expected accuracy, over training rows drawn anew and over test rows. 1,000 times
    the law is fitted to errors redrawn around it: at each size the deviations of the k seeds from their mean, resampled
    and widened by k / (k - 1) in variance, plus the binomial noise of n_test rows. A size with one seed shows no
    scatter of its own; it is given what the misfit exceeds that noise by. All of it holds only if the law does.

    Found by simulation of three laws, five sizes from 1/16 on, training sets of 240 to 50,000 rows, tests of 153 to
    10,000 (100 sets a case): with 3 or 5 seeds the interval covered in 96 to 100 %, so that it is rather wide, where
    the mistakes of two fits on the same test rows were independent or correlated to 0.7. It covered in 88 to 100 %
    where the test row alone decided, least with 153 test rows, and in 88 to 99 % with one seed a size.

    Args:
        sizes: numbers of training rows (n,), one for each size and seed.
        errors: error rates 0..1 on the test rows (n,).
        n_test: number of test rows.
        seed: of the resampling.

    Returns:
        None where there are fewer than three sizes, which do not determine three numbers.
    """
    ns, errs = np.asarray(sizes, np.float64), np.asarray(errors, np.float64)
    assert ns.shape == errs.shape, (ns.shape, errs.shape)
    n, size_of = np.unique(ns, return_inverse=True)
    if len(n) < 3:
        return None
    assert n[0] > 0
    counts = np.bincount(size_of)
    means = np.bincount(size_of, weights=errs) / counts
    weights = 1.0 / _variance(means, n_test)
    shares = n / n[-1]
    height, b, c = (float(found[0]) for found in _fitted(shares, means[None], weights))
    fitted = height * shares**-b + c
    drawn = _redrawn(errs, size_of, means, fitted, weights, n_test=n_test, rng=np.random.default_rng(seed))
    heights, exponents, floors = _fitted(shares, drawn, weights)
    low, high = 1.0 - np.quantile(heights * 2.0**-exponents + floors, (0.975, 0.025))
    accuracy = 1.0 - (height * 2.0**-b + c)
    return PowerLaw(
        a=height * float(n[-1]) ** b,
        b=b,
        c=c,
        residual_sd=float(np.sqrt(np.mean((means - fitted) ** 2))),
        twice=Forecast(
            n=2 * int(n[-1]), accuracy=accuracy, low=float(min(low, accuracy)), high=float(max(high, accuracy))
        ),
    )


def _variance(errors: Doubles, n_test: int) -> Doubles:
    """Of a share of n_test rows; one row of each outcome more keeps it above 0."""
    smoothed = (np.clip(errors, 0.0, 1.0) * n_test + 1) / (n_test + 2)
    return smoothed * (1 - smoothed) / n_test


def _fitted(shares: Doubles, errors: Doubles, weights: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    """Height at share 1, exponent and floor, (R,) each, for R sets of errors (R, S) at shares (S,) of the largest size.

    Each exponent of a grid is solved for exactly; then twice a finer grid is laid around the best.
    """
    sets = np.arange(len(errors))
    exponents = np.broadcast_to(_EXPONENTS, (len(errors), len(_EXPONENTS)))
    for zoom in range(_ZOOMS + 1):
        heights, floors, losses = _solved(shares, errors, weights, exponents)
        best = losses.argmin(axis=1)
        found = heights[sets, best], exponents[sets, best], floors[sets, best]
        if zoom < _ZOOMS:
            low = exponents[sets, np.maximum(best - 1, 0)]
            high = exponents[sets, np.minimum(best + 1, exponents.shape[1] - 1)]
            exponents = low[:, None] + (high - low)[:, None] * np.linspace(0.0, 1.0, 13)
    return found


def _solved(shares: Doubles, errors: Doubles, weights: Doubles, exponents: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    """Heights and floors, neither negative, and losses, (R, G) each, for exponents (R, G): weighted least squares."""
    powers = shares ** -exponents[:, :, None]
    total = weights.sum()
    x, xx = powers @ weights, (powers * powers) @ weights
    e = (errors @ weights)[:, None]
    xe = np.einsum("rgs,rs->rg", powers, errors * weights)
    determinant = total * xx - x * x
    bent = determinant > 1e-9 * total * xx
    safe = np.where(bent, determinant, 1.0)
    heights, floors = (total * xe - x * e) / safe, (xx * e - x * xe) / safe
    floors = np.where(bent, floors, e / total)
    heights = np.where(bent, heights, 0.0)
    heights, floors = np.where(floors < 0, xe / xx, heights), np.maximum(floors, 0.0)
    floors, heights = np.where(heights < 0, e / total, floors), np.maximum(heights, 0.0)
    off = errors[:, None, :] - heights[:, :, None] * powers - floors[:, :, None]
    return heights, floors, (off * off) @ weights


def _redrawn(
    errors: Doubles,
    size_of: NDArray[np.intp],
    means: Doubles,
    fitted: Doubles,
    weights: Doubles,
    *,
    n_test: int,
    rng: np.random.Generator,
) -> Doubles:
    """Mean errors (_RESAMPLES, S) as they might have come out as well."""
    expected = np.clip(fitted, 0.0, 1.0)
    smoothed = (expected * n_test + 1) / (n_test + 2)  # so that no error at all is not taken for certainty
    drawn = expected + rng.binomial(n_test, smoothed, size=(_RESAMPLES, len(means))) / n_test - smoothed
    misfit = float(((means - fitted) ** 2 @ weights) / max(1, len(means) - 3))
    for place, mean in enumerate(means):
        own = errors[size_of == place] - mean
        k = len(own)
        if k > 1:
            own = own * np.sqrt(k / (k - 1))
            drawn[:, place] += own[rng.integers(0, k, (_RESAMPLES, k))].mean(axis=1)
        else:
            drawn[:, place] += np.sqrt(max(0.0, misfit - 1.0) / weights[place]) * rng.standard_normal(_RESAMPLES)
    return np.clip(drawn, 0.0, 1.0)
