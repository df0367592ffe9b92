"""Hits of two methods, over seeds, on the same rows in; how far their accuracies differ, and whether by chance, out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heads.evidence.paired import Hits, mcnemar, paired_difference


@dataclass(frozen=True, kw_only=True)
class SeedsDifference:
    """Mean accuracy of a minus that of b on the same rows and seeds, -1..1.

    `ci95` is its interval. `p_value` is that of "a and b are right equally often", over rows and, where there are
    several, over seeds. `mcnemar_p` is McNemar's for the first seed.
    """

    difference: float
    ci95: tuple[float, float]
    p_value: float
    mcnemar_p: float
    n_seeds: int


def seeds_difference(correct_a: Hits, correct_b: Hits, *, seed: int = 0) -> SeedsDifference:
    """The difference of two mean accuracies, from bool (S, N) each: S seeds, N rows.

    With one seed it is `heads.evidence.paired.paired_difference` and McNemar's test. With several, two things are
    random, rows and seeds, and all seeds see the same rows, so that more seeds do not make more rows. The variance of
    the mean difference is that of a two-way layout without repetition in which both ways are random: of the rows' means
    over seeds (to which Agresti and Min's half rows are added), plus what the seeds' means differ by beyond that. The
    interval is Student's, with Satterthwaite's degrees of freedom (1946, Biometrics Bulletin 2). p_value is the larger
    of that t-test's and of a sign-flip test of the rows' sums, which with one seed is McNemar's, exactly: the first is
    rough where few rows differ, the second does not see that seeds differ.
    """
    assert correct_a.shape == correct_b.shape, (correct_a.shape, correct_b.shape)
    n_seeds = len(correct_a)
    if n_seeds == 1:
        single = paired_difference(correct_a[0], correct_b[0], seed=seed)
        return SeedsDifference(
            difference=single.difference,
            ci95=single.ci95,
            p_value=single.p_value,
            mcnemar_p=single.p_value,
            n_seeds=1,
        )
    from scipy.stats import t as student

    unlike = correct_a.astype(np.int8) - correct_b.astype(np.int8)
    difference = float(unlike.mean())
    variance, freedom = _variance(unlike)
    error = math.sqrt(variance)
    reach = float(student.ppf(0.975, freedom)) * error
    by_t = 2 * float(student.sf(abs(difference) / error, freedom))
    return SeedsDifference(
        difference=difference,
        ci95=(max(difference - reach, -1.0), min(difference + reach, 1.0)),
        p_value=max(by_t, _sign_flip(unlike.sum(axis=0, dtype=np.int64))),
        mcnemar_p=mcnemar(correct_a[0], correct_b[0]),
        n_seeds=n_seeds,
    )


def _variance(unlike: NDArray[np.int8]) -> tuple[float, float]:
    """Of the mean of (S, N) differences -1, 0 or 1, and its degrees of freedom."""
    n_seeds, n_rows = unlike.shape
    by_row, by_seed, mean = unlike.mean(axis=0), unlike.mean(axis=1), float(unlike.mean())
    smoothed = n_rows + 2
    of_rows = ((by_row @ by_row + 1) / smoothed - (mean * n_rows / smoothed) ** 2) / smoothed
    of_seeds = float(by_seed.var(ddof=1)) / n_seeds
    rest = unlike - by_row - by_seed[:, None] + mean
    of_rest = float((rest * rest).sum()) / ((n_seeds - 1) * max(n_rows - 1, 1)) / unlike.size
    if of_seeds <= of_rest:
        return float(of_rows), float(max(n_rows - 1, 1))
    variance = of_rows + of_seeds - of_rest
    parts = ((of_rows, n_rows - 1), (of_seeds, n_seeds - 1), (of_rest, (n_rows - 1) * (n_seeds - 1)))
    return float(variance), float(variance**2 / sum(part**2 / max(free, 1) for part, free in parts))


def _sign_flip(sums: NDArray[np.int64]) -> float:
    """The exact two-sided p-value of "each row's sum (N,) is as likely to have the other sign"."""
    from scipy.signal import convolve
    from scipy.stats import binom

    counts = np.bincount(np.abs(sums))
    chances, reach = np.ones(1), 0
    for size in range(1, len(counts)):
        count = int(counts[size])
        if count:
            own = np.zeros(2 * size * count + 1)
            own[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
            chances = np.maximum(convolve(chances, own), 0.0)
            reach += size * count
    if not reach:
        return 1.0
    totals = np.arange(-reach, reach + 1)
    return float(min(1.0, chances[np.abs(totals) >= abs(int(sums.sum()))].sum()))
