"""Comparisons of runs: binomial coin throws are the referee, and rows are joined by id or refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from featcache.common.errors import UserError
from heads.evidence.paired import compare_runs, holm, mcnemar, paired_difference


def hits(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    return a, b


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 5), (3, 9), (9, 3), (7, 7), (1, 0)])
def test_mcnemar_counts_coin_throws(only_a: int, only_b: int) -> None:
    n, few = only_a + only_b, min(only_a, only_b)
    expected = min(1.0, 2 * sum(math.comb(n, k) for k in range(few + 1)) / 2**n)
    a, b = hits(30, only_a, only_b, 4)
    assert mcnemar(a, b) == pytest.approx(expected)
    assert mcnemar(b, a) == pytest.approx(expected)


def test_difference_by_hand() -> None:
    found = paired_difference(*hits(80, 12, 4, 4))
    assert (found.n_only_a, found.n_only_b) == (12, 4)
    assert found.difference == pytest.approx(0.08)
    # half a row more in each cell: (12.5 - 4.5) / 102 and the variance of a difference of multinomial shares
    center, share = 8 / 102, 17 / 102
    reach = 1.959964 * math.sqrt((share - center**2) / 102)
    assert found.ci95 == pytest.approx((center - reach, center + reach), abs=1e-6)
    assert found.bootstrap_ci95 == pytest.approx(found.ci95, abs=0.012)
    assert found == paired_difference(*hits(80, 12, 4, 4))


def test_swapping_the_runs_turns_the_sign() -> None:
    found, swapped = paired_difference(*hits(80, 12, 4, 4)), paired_difference(*hits(80, 4, 12, 4))
    assert swapped.difference == -found.difference
    assert swapped.ci95 == pytest.approx((-found.ci95[1], -found.ci95[0]))


@pytest.mark.parametrize("n", [1, 50, 10_000])
def test_no_discordant_row_leaves_an_interval_with_a_width(n: int) -> None:
    found = paired_difference(*hits(n, 0, 0, 0))
    assert found.bootstrap_ci95 == (0, 0)
    assert -1 <= found.ci95[0] < -1 / (n + 3)
    assert 1 / (n + 3) < found.ci95[1] <= 1
    assert found.p_value == 1


def test_holm_by_hand() -> None:
    assert holm([0.03, 0.005, 0.02, 0.5]) == pytest.approx([0.06, 0.02, 0.06, 0.5])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([]) == []


def test_holm_rejects_as_the_steps_do() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.random(6) ** 4
        rejected = set()
        for step, place in enumerate(np.argsort(p)):  # as Holm words it: stop at the first that is not small enough
            if p[place] > 0.05 / (6 - step):
                break
            rejected.add(int(place))
        assert {place for place, adjusted in enumerate(holm(p.tolist())) if adjusted <= 0.05} == rejected


def run(correct: np.ndarray, y: np.ndarray, order: np.ndarray) -> dict[str, np.ndarray]:
    """Predictions of two classes, right where they are to be, with rows in the order given."""
    pred = np.where(correct, y, 1 - y)
    ids = np.array([f"images/{i}.jpg" for i in range(len(y))])
    return {"test_ids": ids[order], "test_labels": y[order], "test_scores": np.eye(2)[pred][order]}


@pytest.fixture
def runs() -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    base = rng.random(200) < 0.7
    better, worse, other = base.copy(), base.copy(), base.copy()
    better[np.flatnonzero(~base)[:30]] = True
    worse[np.flatnonzero(base)[:30]] = False
    other[:4] = ~other[:4]
    made = {"good": better, "base": base, "bad": worse, "like": other}
    return {name: run(correct, y, rng.permutation(200)) for name, correct in made.items()}


def test_runs_are_compared_row_by_row(runs: dict[str, dict[str, np.ndarray]]) -> None:
    found = {each.name: each for each in compare_runs(runs, reference="base")}
    assert list(found) == ["good", "bad", "like"]
    assert {name: each.verdict for name, each in found.items()} == {
        "good": "better",
        "bad": "worse",
        "like": "no significant difference",
    }
    assert found["good"].difference == pytest.approx(0.15)
    assert found["good"].p_value == pytest.approx(2 / 2**30)  # thirty throws, all heads: rows were joined by id
    assert found["good"].p_holm == pytest.approx(3 * found["good"].p_value)
    assert all(each.reference == "base" for each in found.values())
    assert compare_runs({"base": runs["base"]}, reference="base") == []


def test_p_from_005_on_is_not_significant() -> None:
    y, order = np.zeros(100, int), np.arange(100)
    correct = np.arange(100) < 60
    for n, verdict in ((5, "no significant difference"), (6, "better")):  # 2 / 2^5 is 0.0625, 2 / 2^6 is 0.031
        more = np.arange(100) < 60 + n
        two = {"a": run(more, y, order), "b": run(correct, y, order)}
        assert compare_runs(two, reference="b")[0].verdict == verdict


def test_other_rows_or_labels_are_refused(runs: dict[str, dict[str, np.ndarray]]) -> None:
    with pytest.raises(UserError, match="no run 'x' to compare with: expected one of good, base, bad, like"):
        compare_runs(runs, reference="x")
    good = runs["good"]
    fewer = {key: value[:150] for key, value in good.items()}
    with pytest.raises(UserError, match=r"different test rows \(150 and 200, 50 ids are in one only\).*same data set"):
        compare_runs({**runs, "good": fewer}, reference="base")
    turned = {**good, "test_labels": np.where(np.arange(200) < 3, 1 - good["test_labels"], good["test_labels"])}
    with pytest.raises(UserError, match="different labels for 3 of 200 test rows"):
        compare_runs({**runs, "good": turned}, reference="base")
    twice = {key: np.concatenate([value, value[:2]]) for key, value in good.items()}
    with pytest.raises(UserError, match="good has 2 test rows whose ids are there already"):
        compare_runs({**runs, "good": twice}, reference="base")
    none = {key: value[:0] for key, value in good.items()}
    with pytest.raises(UserError, match="good has no test rows"):
        compare_runs({"good": none}, reference="good")
