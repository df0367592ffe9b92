"""The verdict's statistics on drawn sets: it claims no gain where there is none, claims one where there is, and says
that it is undecided where the numbers do not tell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from compared import DrawnSet, a_group, verdict_on
from scipy.stats import binomtest

from finetune.comparison.differences import differences_of
from finetune.comparison.groups import Group
from finetune.comparison.overtaking import crossing
from finetune.comparison.results import Verdict
from finetune.comparison.verdict import rule_of_thumb
from heads.evidence.paired import paired_difference

N_SETS = 200
TUNED = ("full", "partial:layer4", "scratch")


def drawn_sets(
    n_rows: int, n_seeds: int, *, gain: float, own: float, seed_sd: float = 0.0, n_sets: int = N_SETS
) -> list[Verdict]:
    """The verdicts on drawn sets; each has two heads and three tuned methods."""
    verdicts = []
    for number in range(n_sets):
        rng = np.random.default_rng([number, n_rows, n_seeds])
        drawn = DrawnSet(rng, n_rows=n_rows, own=own, seed_sd=seed_sd)
        groups: list[Group] = []
        for method in ("logreg", "knn", *TUNED):
            hits = drawn.method(n_seeds=n_seeds, gain=gain if method in TUNED else 0.0)
            val = rng.binomial(60, 0.75, n_seeds) / 60  # of 60 validation rows, of equal worth
            groups.append(a_group(method, hits, val=val.tolist()))
        verdicts.append(verdict_on(*groups))
    return verdicts


def n_claimed(verdicts: list[Verdict]) -> int:
    """In how many a gain is claimed."""
    return sum(bool(verdict.beyond_chance) for verdict in verdicts)


@pytest.mark.parametrize(
    ("n_rows", "n_seeds", "own", "seed_sd"),
    [
        (150, 1, 0.1, 0.0),
        (1000, 3, 0.3, 0.03),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in ((1000, 1, 0.5, 0.0), (150, 3, 0.3, 0.0), (1000, 3, 0.3, 0.0))
        ),
    ],
)
def test_no_gain_is_claimed_where_there_is_none(n_rows: int, n_seeds: int, own: float, seed_sd: float) -> None:
    """In at most 5 % of 200 sets, as far as a binomial count can tell.

    With fewest and most rows and seeds; what lies between is slow, and these are its quicker twins.
    """
    claimed = n_claimed(drawn_sets(n_rows, n_seeds, gain=0.0, own=own, seed_sd=seed_sd))
    assert binomtest(claimed, N_SETS, 0.05, alternative="greater").pvalue > 0.05, claimed


@pytest.mark.parametrize(("n_rows", "n_seeds", "gain"), [(300, 1, 0.6), (1000, 1, 0.3), (1000, 3, 0.25)])
def test_a_real_gain_is_claimed(n_rows: int, n_seeds: int, gain: float) -> None:
    assert n_claimed(drawn_sets(n_rows, n_seeds, gain=gain, own=0.3, n_sets=50)) >= 40


@pytest.mark.parametrize(("n_rows", "n_seeds", "gain"), [(150, 1, 0.3), (150, 3, 0.3), (500, 1, 0.2)])
def test_a_gain_that_is_not_seen_is_not_denied(n_rows: int, n_seeds: int, gain: float) -> None:
    """Every tuned method is better by 4 or 6 points, more than so few rows always show."""
    verdicts = drawn_sets(n_rows, n_seeds, gain=gain, own=0.3, n_sets=40)
    assert n_claimed(verdicts) < 40
    for verdict in verdicts:
        assert verdict.gain_ci95 is not None
        if not verdict.beyond_chance:
            assert verdict.gain_ci95[1] > 0.01
            assert verdict.outcome == "undecided"
            assert verdict.follows_rule is not True
        assert "holds here" not in verdict.sentences[2]


def test_no_gain_is_told_where_the_interval_excludes_one() -> None:
    """The same shares gained and lost: on 10,000 rows that excludes a gain of one point, on 1,000 it does not."""
    outcomes = {}
    for n_rows in (1000, 10_000):
        head, tuned = two(0.02, 0.02, n_rows=n_rows)
        verdict = verdict_on(a_group("logreg", head), a_group("full", tuned))
        outcomes[n_rows] = verdict.outcome, verdict.follows_rule
        told = verdict.sentences[1]
        assert told.startswith("Undecided whether" if n_rows == 1000 else "Fine-tuning does not gain one point: full")
    assert outcomes == {1000: ("undecided", None), 10_000: ("no gain", True)}


def test_how_many_test_rows_would_decide() -> None:
    """As many as the verdict says, with the same shares gained and lost, narrow the interval to one point."""
    head, tuned = two(0.05, 0.04, n_rows=400)
    told = verdict_on(a_group("logreg", head), a_group("full", tuned)).sentences[1]
    assert "the interval holds both 0 and a gain of one point; with about 14,000 test images" in told
    low, high = paired_difference(*(each[0] for each in two(0.05, 0.04, n_rows=14_000))).ci95
    assert high - low == pytest.approx(0.01, rel=0.02)
    seeds = two(0.05, 0.04, n_rows=400, n_seeds=2)
    several = verdict_on(a_group("logreg", seeds[0]), a_group("full", seeds[1])).sentences[1]
    assert "the interval holds both 0 and a gain of one point." in several


def test_methods_of_other_rows_are_in_no_verdict() -> None:
    """A head on 500 rows and fine-tuning on 50: nothing is compared, and the verdict says why."""
    head, worse = two(0.0, 0.04)
    groups = [a_group("logreg", head), a_group("full", worse, n_train=50, fraction=0.1)]
    assert differences_of(groups) == ()
    verdict = verdict_on(*groups)
    assert (verdict.best_head, verdict.best_tuned, verdict.gain, verdict.follows_rule) == ("logreg", None, None, None)
    assert verdict.sentences[1:] == (
        "Nothing was fine-tuned on the same rows, so there is no more to say.",
        "Not compared: full (resnet18), trained on 50 rows (10 %), not on 500 rows (100 %).",
    )


def test_the_largest_share_of_the_rows_that_both_kinds_have_is_compared() -> None:
    head, tuned = two(0.08, 0.02)
    half = {"n_train": 250, "fraction": 0.5}
    both = [a_group("logreg", head), a_group("logreg", head, **half), a_group("full", tuned, **half)]
    verdict = verdict_on(*both)
    assert (verdict.best_tuned, verdict.outcome, len(verdict.sentences)) == ("full", "gain", 3)
    assert verdict.sentences[0].startswith(
        "With 250 training rows (50 %), the most that heads and fine-tuning both have, the best cheap choice is logreg"
    )
    verdict = verdict_on(*both, a_group("scratch", tuned))
    assert verdict.best_tuned == "scratch"
    assert verdict.sentences[3] == (
        "Not compared: full (resnet18), trained on 250 rows (50 %), not on 500 rows (100 %)."
    )


@pytest.mark.parametrize("tuned_first", [False, True])
def test_rows_that_both_kinds_have_go_before_those_that_most_have(tuned_first: bool) -> None:
    head, tuned = two(0.08, 0.02)
    groups = [
        a_group("knn", head, n_train=400),
        a_group("svm", head, n_train=400),
        a_group("ridge", head, n_train=400, kind="head"),
        a_group("logreg", head),
        a_group("full", tuned),
    ]
    verdict = verdict_on(*reversed(groups) if tuned_first else groups)
    assert (verdict.best_head, verdict.best_tuned, verdict.outcome) == ("logreg", "full", "gain")
    assert verdict.sentences[3].count("other training or validation rows") == 3
    apart = [a_group("logreg", head, n_train=400), a_group("full", tuned)]
    verdict = verdict_on(*reversed(apart) if tuned_first else apart)
    assert (verdict.best_head, verdict.best_tuned) == ("logreg", None)


def test_methods_without_a_common_seed_are_in_no_verdict() -> None:
    head, tuned = two(0.08, 0.02, n_seeds=2)
    first, second = a_group("full", tuned[:1]), a_group("scratch", tuned, val=0.9)
    second = replace(second, runs={1: second.runs[1]})
    verdict = verdict_on(a_group("logreg", head[:1]), first, second)
    assert (verdict.best_tuned, verdict.outcome) == ("full", "gain")
    assert verdict.sentences[3] == "Not compared: scratch (resnet18), no seed in common with logreg (resnet18)."
    verdict = verdict_on(a_group("logreg", head), first)
    assert "over the 1 seed that both have" in verdict.sentences[1]


def two(right: float, wrong: float, *, n_rows: int = 1000, n_seeds: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Hits of a head that has 70 % of the rows right, and of a method that gains and loses such shares of all rows."""
    head = np.zeros((n_seeds, n_rows), bool)
    head[:, : round(0.7 * n_rows)] = True
    tuned = head.copy()
    tuned[:, : round(wrong * n_rows)] = False
    tuned[:, n_rows - round(right * n_rows) :] = True
    return head, tuned


def test_the_numbers_of_a_verdict() -> None:
    head, tuned = two(0.08, 0.02)
    worse = two(0.0, 0.05)[1]
    verdict = verdict_on(
        a_group("knn", worse, val=0.6),
        a_group("logreg", head, val=0.7),
        a_group("head", two(0.2, 0.0)[1], val=0.99),
        a_group("full", tuned, val=0.8),
        a_group("scratch", two(0.2, 0.0)[1], val=0.75),
    )
    assert (verdict.best_head, verdict.best_tuned) == ("logreg", "full")
    assert verdict.gain == pytest.approx(0.06)
    assert verdict.beyond_chance
    assert verdict.outcome == "gain"
    assert verdict.extra_minutes == pytest.approx(2.0)
    assert verdict.points_per_minute == pytest.approx(3.0)
    assert verdict.rule_of_thumb == "features"
    assert verdict.follows_rule is False
    assert len(verdict.sentences) == 3
    assert "logreg (resnet18): 0.7000 of 1,000 test images" in verdict.sentences[0]
    assert verdict.sentences[1].startswith(
        "Fine-tuning gains beyond chance: full (resnet18), the best on validation, by +6"
    )
    assert "3 points for each of these minutes" in verdict.sentences[1]
    assert verdict.sentences[2].endswith("(fewer than 1,000 images: features) does not hold here.")


def test_test_rows_choose_nothing() -> None:
    """The method of the highest test accuracy has the lowest validation accuracy."""
    head, tuned = two(0.0, 0.01)
    verdict = verdict_on(
        a_group("logreg", head, val=0.7), a_group("full", tuned, val=0.8), a_group("scratch", two(0.3, 0.0)[1], val=0.1)
    )
    assert verdict.best_tuned == "full"
    assert not verdict.beyond_chance
    assert verdict.outcome == "loss"
    assert "loses" in verdict.sentences[1]


def test_without_heads_or_tuned_methods() -> None:
    head, tuned = two(0.1, 0.0)
    assert "No cached head" in verdict_on(a_group("full", tuned)).sentences[0]
    alone = verdict_on(a_group("logreg", head))
    assert alone.best_head == "logreg"
    assert alone.beyond_chance is None
    assert "Nothing was fine-tuned" in alone.sentences[1]


def test_rules_of_thumb() -> None:
    assert [rule_of_thumb(n) for n in (999, 1000, 10_000, 10_001)] == ["features", "partial", "partial", "full"]
    head, tuned = two(0.08, 0.02)
    same, unclear = two(0.002, 0.002)[1], two(0.02, 0.02)[1]

    def verdict(n_train: int, **methods: np.ndarray) -> bool | None:
        groups = [a_group("logreg", head, n_train=n_train)]
        groups += [a_group(name.replace("_", ":"), hits, n_train=n_train) for name, hits in methods.items()]
        return verdict_on(*groups).follows_rule

    assert verdict(500, full=same) is True
    assert verdict(500, full=tuned) is False
    assert verdict(500, full=unclear, partial_layer4=same) is None
    assert verdict(5000, full=same, partial_layer4=unclear) is None
    assert verdict(5000, full=tuned) is None
    assert verdict(5000, full=tuned, partial_layer4=same) is False
    assert verdict(5000, partial_layer4=tuned) is True
    assert verdict(50_000, full=tuned, partial_layer4=same) is True


def test_crossings() -> None:
    sizes = np.array([100.0, 1000.0, 10_000.0])
    assert crossing(sizes, np.array([-0.1, 0.1, 0.2])) == pytest.approx(100 * 10**0.5)
    assert crossing(sizes, np.array([0.1, -0.1, 0.1])) == pytest.approx(1000 * 10**0.5)
    assert crossing(sizes, np.array([0.1, 0.1, 0.1])) == 100
    assert crossing(sizes, np.array([0.1, 0.1, 0.0])) == np.inf


def test_where_fine_tuning_overtakes() -> None:
    curves = []
    for fraction, (right, wrong) in {0.1: (0.0, 0.1), 0.5: (0.01, 0.03), 1.0: (0.1, 0.02)}.items():
        head, tuned = two(right, wrong)
        curves.append(a_group("logreg", head, fraction=fraction, n_train=round(4000 * fraction)))
        curves.append(a_group("full", tuned, fraction=fraction, n_train=round(4000 * fraction)))
    found = verdict_on(*curves).overtakes
    assert found is not None
    assert (found.smallest, found.largest) == (400, 4000)
    assert found.rows == pytest.approx(2000 * 2 ** (0.02 / 0.1))
    assert found.low is not None
    assert found.high is not None
    assert 400 < found.low < found.rows < found.high < 4000
    assert "full is ahead from about 2,300 training rows on" in found.told
    behind = [each for each in curves if each.fraction < 1]
    never = verdict_on(*behind).overtakes
    assert never is not None
    assert never.rows is None
    assert never.told == "full does not overtake it at up to 2,000 training rows"
    assert verdict_on(*curves[:2]).overtakes is None


def test_a_curve_that_ends_lower_by_chance_is_not_said_to_stay_so() -> None:
    """One image of 100 that the head alone has right: in no redrawn set is fine-tuning ahead, which shows nothing."""
    curves = []
    for fraction, wrong in {0.5: 0.02, 1.0: 0.01}.items():
        head, tuned = two(0.0, wrong, n_rows=100)
        kept = {"fraction": fraction, "n_train": round(400 * fraction)}
        curves += [a_group("logreg", head, **kept), a_group("full", tuned, **kept)]
    verdict = verdict_on(*curves)
    assert verdict.outcome == "undecided"
    assert verdict.overtakes is not None
    assert verdict.overtakes.told == (
        "full is not seen to overtake it at up to 400 training rows, which leaves it undecided"
    )
