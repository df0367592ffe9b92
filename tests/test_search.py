"""Candidates in order: ties, edges, chains that are left, and what lies beyond a grid."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from selecting import SMALL_PROBE, Digits, ridge, use

from featcache.common.errors import UserError
from heads.classifiers import LogReg
from heads.closed_form import ClosedForm
from heads.linear_probe import Member
from heads.neighbor_search import Neighbors


def test_ties_go_to_the_stronger_regularisation(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, ridge(10.0, 9.999, 9.998))
    done = digits.select("mine")
    assert len({c["val_accuracy"] for c in done.candidates}) == 1
    assert done.params == {"alpha": 10.0}


def test_an_edge_with_nothing_beyond_is_told(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, ridge(1e9, 1e8, 10.0))
    done = digits.select("mine")
    assert done.at_grid_edge == ["alpha"]
    assert done.notes == ["at the edge of its grid: alpha=10, of 10 to 1e+09; a better value may lie beyond"]
    use(monkeypatch, ridge(1e9, 10.0, 1e-9))
    assert digits.select("mine").params == {"alpha": 10.0}
    assert digits.select("mine").at_grid_edge == []
    use(monkeypatch, ridge(10.0))
    assert digits.select("mine").at_grid_edge == []
    use(monkeypatch, Neighbors(k=(400, 1), temperature=(10.0,)))
    done = digits.select("mine")
    assert done.params["k"] == 1
    assert done.at_grid_edge == []  # there is nothing below one neighbour


@pytest.mark.parametrize("grid", [(1e5, 1e4), (1e-7, 1e-9)])
def test_an_end_of_the_grid_is_gone_beyond(
    grid: tuple[float, ...], digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, ridge(*grid, kind=ClosedForm))
    done = digits.select("mine")
    alphas = [c["params"]["alpha"] for c in done.candidates]
    assert alphas == sorted(alphas, reverse=True)  # from strong to weak, wherever they were added
    added = [c["params"]["alpha"] for c in done.candidates if c.get("extended")]
    assert set(added) == set(alphas) - set(grid)
    assert done.params["alpha"] in added
    assert done.at_grid_edge == []
    use(monkeypatch, ridge(*alphas))
    assert digits.select("mine").params == done.params


def test_what_is_as_good_beyond_the_grid_is_not_taken(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, ridge(1e9, 1e7, kind=ClosedForm))
    done = digits.select("mine")
    assert len({c["val_accuracy"] for c in done.candidates}) == 1
    assert done.params == {"alpha": 1e9}
    assert sum(c.get("extended", False) for c in done.candidates) == 4


def test_a_grid_is_continued_three_times_at_most(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, ridge(1e-58, 1e-60, kind=ClosedForm))
    done = digits.select("mine")
    assert 4 <= sum(c.get("extended", False) for c in done.candidates) <= 12
    assert done.candidates[-1]["params"]["alpha"] == 1e-60 or done.params["alpha"] < 1e-58


def test_one_standard_error_prefers_the_stronger(digits: Digits) -> None:
    for cv in (None, 5):
        best = digits.select("ridge", cv=cv)
        done = digits.select("ridge", cv=cv, rule="one-se")
        by_alpha = {c["params"]["alpha"]: c for c in done.candidates}
        top = by_alpha[best.params["alpha"]]
        enough = top["val_accuracy"] - top["val_error"]
        within = [alpha for alpha, c in by_alpha.items() if c["val_accuracy"] >= enough]
        assert done.params["alpha"] == max(within) > best.params["alpha"]
        assert "within one standard error" in done.how
        y = digits.y[done.val_rows]
        assert (done.val_scores.argmax(axis=1) == y).mean() == by_alpha[done.params["alpha"]]["val_accuracy"]


def test_a_chain_that_only_gets_worse_is_left(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Worsening(LogReg):
        def search(self, chain, folds):  # type: ignore[no-untyped-def]
            for i, trial in enumerate(super().search(chain, folds)):
                (scores,) = trial.scores
                wrong = np.arange(len(scores)) < 40 * (i + 1)
                yield dataclasses.replace(trial, scores=(np.where(wrong[:, None], -scores, scores),))

        def beyond(self, best, name, up):  # type: ignore[no-untyped-def]
            return []

    use(monkeypatch, Worsening(C=(0.01, 0.1, 1.0, 10.0, 100.0)))
    done = digits.select("mine")
    assert [c["tried"] for c in done.candidates] == [True, True, True, False, False]
    assert [c["params"]["C"] for c in done.candidates] == [0.01, 0.1, 1.0, 10.0, 100.0]
    assert done.candidates[-1]["val_accuracy"] is None
    assert "3 of 5 candidates" in done.how


def test_a_candidate_that_diverges_is_not_chosen(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    members = tuple(Member(optimizer="sgd", lr=lr, weight_decay=0.0, hidden=8) for lr in (1e30, 1e-2))
    use(monkeypatch, dataclasses.replace(SMALL_PROBE, members=members))
    done = digits.select("mine")
    assert done.params["lr"] < 1
    (diverged,) = [c for c in done.candidates if c["params"]["lr"] == 1e30]
    assert diverged["val_accuracy"] is None
    assert not diverged["converged"]
    assert done.converged
    use(monkeypatch, dataclasses.replace(SMALL_PROBE, members=members[:1]))
    with pytest.raises(UserError, match="no candidate gives finite scores"):
        digits.select("mine")
