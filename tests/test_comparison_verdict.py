"""The verdict's statistics on drawn sets: it claims no gain where there is none, and claims one where there is."""

from __future__ import annotations

import numpy as np
import pytest
from compared import DrawnSet, a_group, verdict_on
from scipy.stats import binomtest

from finetune.comparison.groups import Group
from finetune.comparison.overtaking import crossing
from finetune.comparison.verdict import rule_of_thumb

N_SETS = 200
TUNED = ("full", "partial:layer4", "scratch")


def drawn_sets(
    n_rows: int, n_seeds: int, *, gain: float, own: float, seed_sd: float = 0.0, n_sets: int = N_SETS
) -> int:
    """In how many of the drawn sets a gain is claimed; each has two heads and three tuned methods."""
    claimed = 0
    for number in range(n_sets):
        rng = np.random.default_rng([number, n_rows, n_seeds])
        drawn = DrawnSet(rng, n_rows=n_rows, own=own, seed_sd=seed_sd)
        groups: list[Group] = []
        for method in ("logreg", "knn", *TUNED):
            hits = drawn.method(n_seeds=n_seeds, gain=gain if method in TUNED else 0.0)
            val = rng.binomial(60, 0.75, n_seeds) / 60  # of 60 validation rows, of equal worth
            groups.append(a_group(method, hits, val=val.tolist()))
        claimed += bool(verdict_on(*groups).beyond_chance)
    return claimed


@pytest.mark.parametrize(
    ("n_rows", "n_seeds", "own", "seed_sd"),
    [(150, 1, 0.1, 0.0), (1000, 1, 0.5, 0.0), (150, 3, 0.3, 0.0), (1000, 3, 0.3, 0.0), (1000, 3, 0.3, 0.03)],
)
def test_no_gain_is_claimed_where_there_is_none(n_rows: int, n_seeds: int, own: float, seed_sd: float) -> None:
    """In at most 5 % of 200 sets, as far as a binomial count can tell."""
    claimed = drawn_sets(n_rows, n_seeds, gain=0.0, own=own, seed_sd=seed_sd)
    assert binomtest(claimed, N_SETS, 0.05, alternative="greater").pvalue > 0.05, claimed


@pytest.mark.parametrize(("n_rows", "n_seeds", "gain"), [(300, 1, 0.6), (1000, 1, 0.3), (1000, 3, 0.25)])
def test_a_real_gain_is_claimed(n_rows: int, n_seeds: int, gain: float) -> None:
    assert drawn_sets(n_rows, n_seeds, gain=gain, own=0.3, n_sets=50) >= 40


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
    same = two(0.02, 0.02)[1]

    def verdict(n_train: int, **methods: np.ndarray) -> bool | None:
        groups = [a_group("logreg", head, n_train=n_train)]
        groups += [a_group(name.replace("_", ":"), hits, n_train=n_train) for name, hits in methods.items()]
        return verdict_on(*groups).follows_rule

    assert verdict(500, full=same) is True
    assert verdict(500, full=tuned) is False
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
    assert "up to 2,000 training rows" in never.told
    assert verdict_on(*curves[:2]).overtakes is None
