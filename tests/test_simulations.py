"""Intervals and verdicts on many simulated sets: how often they hold, how often chance passes for a difference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from heads.classifiers import CLASSIFIERS
from heads.evidence.metrics import wilson
from heads.evidence.paired import compare_runs, holm, mcnemar, paired_difference
from heads.evidence.power_law import fit_power_law
from heads.features import ArrayFeatures
from heads.fitting import Params, Task

HEADS: dict[str, tuple[str, Params]] = {
    "centroid": ("centroid", {}),
    "ridge": ("ridge", {"alpha": 1.0}),
    "ridge, strong": ("ridge", {"alpha": 1000.0}),
    "lda": ("lda", {"shrinkage": 0.5}),
}
REPEATS = 400


def slack(rate: float, n: int) -> float:
    """Three standard errors of a share of n."""
    return 3 * math.sqrt(rate * (1 - rate) / n)


@pytest.fixture(scope="module", params=[2, 3])
def permuted(request: pytest.FixtureRequest) -> tuple[int, list[dict[str, dict[str, np.ndarray]]]]:
    """Predictions of every head, 400 times, on 60 test rows of balanced classes whose labels mean nothing."""
    n_classes = request.param
    rng = np.random.default_rng(n_classes)
    y = np.arange(60) % n_classes
    ids = np.arange(60).astype(str)
    repeats = []
    for _ in range(REPEATS):
        X, X_test = rng.normal(size=(2, 60, 8)).astype(np.float32)
        task = Task(X=ArrayFeatures(X), y=rng.permutation(y), n_classes=n_classes)
        y_test = rng.permutation(y)
        repeats.append(
            {
                name: {
                    "test_ids": ids,
                    "test_labels": y_test,
                    "test_scores": CLASSIFIERS[clf].fit(params, task).head.scores(X_test),
                }
                for name, (clf, params) in HEADS.items()
            }
        )
    return n_classes, repeats


def right(run: dict[str, np.ndarray]) -> np.ndarray:
    return run["test_scores"].argmax(axis=1) == run["test_labels"]


def test_wilson_covers_chance_where_labels_mean_nothing(permuted: tuple[int, list]) -> None:
    n_classes, repeats = permuted
    for name in HEADS:
        intervals = [wilson(int(right(runs[name]).sum()), 60) for runs in repeats]
        covered = np.mean([low <= 1 / n_classes <= high for low, high in intervals])
        assert covered >= 0.95 - slack(0.95, REPEATS), name
        assert np.mean([low <= 1 / n_classes + 0.15 <= high for low, high in intervals]) < 0.6, "too wide to say much"


def test_chance_is_rarely_taken_for_a_difference(permuted: tuple[int, list]) -> None:
    _, repeats = permuted
    p = np.array([mcnemar(right(runs["centroid"]), right(runs["ridge"])) for runs in repeats])
    assert (p < 0.05).mean() <= 0.05 + slack(0.05, REPEATS)
    assert (p < 0.5).mean() > 0.2, "these heads differ often enough that this could fail"


def test_several_heads_are_rarely_told_apart_by_chance(permuted: tuple[int, list]) -> None:
    _, repeats = permuted
    told = [
        {each.verdict for each in compare_runs(runs, reference="centroid")} != {"no significant difference"}
        for runs in repeats
    ]
    assert np.mean(told) <= 0.05 + slack(0.05, REPEATS)


def test_holm_keeps_the_family_wise_rate_that_single_tests_break() -> None:
    rng = np.random.default_rng(0)
    p = rng.random((2000, 10))
    assert (p.min(axis=1) < 0.05).mean() > 0.3
    adjusted = np.array([holm(each.tolist()) for each in p])
    assert (adjusted.min(axis=1) < 0.05).mean() <= 0.05 + slack(0.05, 2000)
    p[:, :5] /= 1e5  # five real differences: they do not loosen it for the others
    adjusted = np.array([holm(each.tolist()) for each in p])
    assert (adjusted[:, :5] < 0.05).mean() > 0.99
    assert 0.02 < (adjusted[:, 5:].min(axis=1) < 0.05).mean() <= 0.05 + slack(0.05, 2000)


#: Exact coverage of Wilson's interval by rows and accuracy, from log-gamma binomials and the formula of 1927, without
#: scipy or this library. Counts are whole: with n = 50 and 0.9 it is 97.03 %, with n = 50 and 0.98 it is 92.16 %, so
#: that no simulation finds 93 to 97 % there but by luck. Elsewhere it does. In those two cells Jeffreys' interval has
#: 94.17 and 98.22 %, Clopper and Pearson's 97.03 and 98.22 %, Agresti and Coull's 97.03 and 98.22 %; Jeffreys' falls to
#: 91.95 % with n = 153 and 0.98, where Wilson's has 96.50 %.
WILSON_COVERAGE = {
    (50, 0.5): 0.9351,
    (50, 0.9): 0.9703,
    (50, 0.98): 0.9216,
    (153, 0.5): 0.9480,
    (153, 0.9): 0.9426,
    (153, 0.98): 0.9650,
    (1000, 0.5): 0.9463,
    (1000, 0.9): 0.9491,
    (1000, 0.98): 0.9467,
    (10_000, 0.5): 0.9488,
    (10_000, 0.9): 0.9489,
    (10_000, 0.98): 0.9506,
}


@pytest.mark.parametrize(("n", "p"), WILSON_COVERAGE)
def test_wilson_coverage(n: int, p: float) -> None:
    exact = WILSON_COVERAGE[n, p]
    counts = np.arange(n + 1)
    probability = stats.binom.pmf(counts, n, p)
    covers = dict.fromkeys(counts.tolist(), False)
    for k in counts[probability > 1e-9].tolist():
        low, high = wilson(k, n)
        covers[k] = low <= p <= high
    assert probability[list(covers.values())].sum() == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("n", [50, 153, 1000])
@pytest.mark.parametrize(("a_alone", "b_alone"), [(0.02, 0.005), (0.05, 0.02), (0.1, 0.1), (0.2, 0.1)])
def test_paired_interval_coverage(n: int, a_alone: float, b_alone: float) -> None:
    rng = np.random.default_rng(1)
    truth = a_alone - b_alone
    cells = rng.multinomial(n, [a_alone, b_alone, 1 - a_alone - b_alone], size=1000)
    different, times = np.unique(cells[:, :2], axis=0, return_counts=True)
    covered = plain = 0
    for (only_a, only_b), weight in zip(different.tolist(), times.tolist(), strict=True):
        a = np.repeat([True, False, True], [only_a, only_b, n - only_a - only_b])
        b = np.repeat([False, True, True], [only_a, only_b, n - only_a - only_b])
        found = paired_difference(a, b)
        covered += weight * (found.ci95[0] <= truth <= found.ci95[1])
        plain += weight * (found.bootstrap_ci95[0] <= truth <= found.bootstrap_ci95[1])
    assert 0.95 - slack(0.95, 1000) <= covered / 1000
    few = n * (a_alone + b_alone) < 6
    assert few or covered / 1000 <= 0.97 + slack(0.97, 1000)
    if n == 50 and a_alone == 0.02:
        assert plain / 1000 < 0.75, "the bootstrap finds no discordant row and no width"


def test_forecast_coverage() -> None:
    """Five sizes, three seeds; the seeds scatter by 3 % of the error, and half of a mistake lies in the test row."""
    rng = np.random.default_rng(2)
    sizes = np.array([100, 200, 400, 800, 1600])
    truth = 1 - (2 * 3200**-0.5 + 0.02)
    covered = []
    for _ in range(120):
        p = (2 * sizes**-0.5 + 0.02)[:, None] * rng.normal(1, 0.03, (5, 3))
        latent = math.sqrt(0.5) * (rng.normal(size=500) + rng.normal(size=(5, 3, 500)))
        errors = (latent < stats.norm.ppf(p)[..., None]).mean(axis=2)
        law = fit_power_law(np.repeat(sizes, 3), errors.ravel(), n_test=500)
        assert law is not None
        assert law.twice.high - law.twice.low < 0.1
        covered.append(law.twice.low <= truth <= law.twice.high)
    assert np.mean(covered) >= 0.95 - slack(0.95, 120)
