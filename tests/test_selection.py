"""Validation chooses, and nothing else: which rows are scored, and what is told of the choice."""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest
from selecting import N_TRAIN, SMALL_PROBE, Bounded, Digits, ridge, use

from featcache.common.errors import UsageError, UserError
from heads.classifiers import CLASSIFIERS, NAMES
from heads.evidence.metrics import log_loss
from heads.features import ArrayFeatures
from heads.folds import validation
from heads.recipe import Recipe
from heads.selection import Selection, fit_unvalidated, select
from heads.standardization import column_statistics


class Stuck(Bounded):
    """Nothing it fits converges."""

    def _fitted(self, *arguments):  # type: ignore[no-untyped-def]
        return dataclasses.replace(super()._fitted(*arguments), converged=False, message="it did not move")


@pytest.mark.parametrize("name", ["logreg", "svm", "ridge", "knn", "lda", "centroid", "svm-rbf"])
def test_validation_rows_only_choose(name: str, digits: Digits) -> None:
    """The head without refit depends on validation rows through the choice alone: the same params, the same bits."""
    first = digits.select(name, refit=False)
    assert first.head is first.val_head
    halved = Digits(digits.X, digits.y, val=digits.val[::2])
    mean, _ = column_statistics(ArrayFeatures(digits.X[:N_TRAIN]))
    for one in (first, halved.select(name, refit=False)):
        task = digits.validation(Recipe(clf=name, device="cpu")).folds.task(digits.train)
        again = CLASSIFIERS[name].fit(one.params, task).head
        assert (again.predict(digits.X) == one.head.predict(digits.X)).mean() > 0.99
        if "mean" in again.LAYOUT:
            np.testing.assert_allclose(one.head.mean, mean, rtol=1e-6, atol=1e-12)


def test_the_refit_learns_from_both(digits: Digits) -> None:
    done = digits.select("ridge")
    expected = CLASSIFIERS["ridge"].fit(done.params, digits.validation(Recipe(clf="ridge")).whole()).head
    assert (done.head.scores(digits.X) == expected.scores(digits.X)).all()
    both = column_statistics(ArrayFeatures(digits.X))[0]
    np.testing.assert_allclose(done.head.mean, both, rtol=1e-6, atol=1e-12)
    assert not np.allclose(done.val_head.mean, both, rtol=1e-6, atol=1e-12)


def test_the_head_of_the_best_candidate_is_taken(digits: Digits) -> None:
    for name in ("knn", "lda", "ridge"):
        done = digits.select(name)
        tried = [c for c in done.candidates if c["tried"]]
        best = max(tried, key=lambda c: (c["val_accuracy"], -(c["val_log_loss"] or 0.0)))
        if name == "knn":  # its ties are decided by log-loss with one more row that is wrong
            best = next(c for c in tried if c["params"] == done.params and c["val_accuracy"] == best["val_accuracy"])
        assert best["params"] == done.params
        y_val = digits.y[digits.val]
        assert (done.val_rows == digits.val).all()
        assert (done.val_scores.argmax(axis=1) == y_val).mean() == best["val_accuracy"]
        assert best["val_error"] == pytest.approx(np.sqrt(best["val_accuracy"] * (1 - best["val_accuracy"]) / 180))
        if best["val_log_loss"] is not None:
            assert log_loss(done.val_scores, y_val) == pytest.approx(best["val_log_loss"], rel=1e-5)


def test_balanced_accuracy_chooses_for_the_small_class(digits: Digits) -> None:
    rows = np.sort(np.concatenate([np.flatnonzero(digits.y == 3), np.flatnonzero(digits.y == 8)[::6]]))
    few = Digits(digits.X[rows], (digits.y[rows] == 8).astype(np.int64))
    few = dataclasses.replace(few, train=np.arange(0, len(rows), 2), val=np.arange(1, len(rows), 2))
    done = few.select("ridge", select_by="balanced-accuracy", class_weight="balanced")
    best = next(c for c in done.candidates if c["params"] == done.params)
    assert best["val_balanced_accuracy"] == max(c["val_balanced_accuracy"] for c in done.candidates)
    right = done.val_scores.argmax(axis=1) == few.y[done.val_rows]
    recalls = [right[few.y[done.val_rows] == c].mean() for c in (0, 1)]
    assert best["val_balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert "validation balanced accuracy" in done.how
    plain = few.select("ridge")
    assert not np.array_equal(done.head.scores(few.X), plain.head.scores(few.X))


def test_a_calibrated_head_is_the_same_head_with_better_probabilities(digits: Digits) -> None:
    for cv in (None, 3, "loo"):
        plain, done = digits.select("ridge", cv=cv), digits.select("ridge", cv=cv, calibrate=True)
        assert done.temperature is not None
        assert done.head.probabilistic
        assert not plain.head.probabilistic
        np.testing.assert_allclose(
            done.head.scores(digits.X), plain.head.scores(digits.X) / done.temperature, rtol=1e-4, atol=1e-4
        )
        assert done.uncalibrated is not None
        y = digits.y[done.val_rows]
        np.testing.assert_array_equal(done.uncalibrated[1], plain.val_scores)
        np.testing.assert_allclose(done.val_scores, plain.val_scores / done.temperature, rtol=1e-4, atol=1e-4)
        assert log_loss(done.val_scores, y) < log_loss(plain.val_scores, y)
    with pytest.raises(UserError, match=r"--calibrate: a support_vectors head is not calibrated.*choose another --clf"):
        digits.select("svm-rbf", calibrate=True)
    with pytest.raises(UsageError, match=r"--calibrate: knn chooses a temperature"):
        digits.select("knn", calibrate=True)


def test_without_rows_to_choose_on_a_rather_strong_candidate_is_fitted(digits: Digits) -> None:
    for name in NAMES:
        recipe = Recipe(clf=name, device="cpu")
        rows = np.array([int(np.flatnonzero(digits.y == c)[0]) for c in range(10)])
        few = validation(ArrayFeatures(digits.X[rows]), digits.y[rows], recipe, n_classes=10)
        assert len(few.scored[0]) == 0
        head, params = fit_unvalidated(recipe, few)
        assert (head.predict(digits.X) == digits.y).mean() > 0.3, name
        if name == "ridge":
            assert params == {"alpha": CLASSIFIERS["ridge"].grid[6]}  # type: ignore[attr-defined]


def test_what_did_not_converge_is_told(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, ridge(1.0, kind=Stuck))
    done = digits.select("mine")
    assert not done.converged
    assert [note.partition(":")[0] for note in done.notes] == [
        "did not converge in the search",
        "did not converge in the refit",
    ]
    assert done.notes[0].endswith(": it did not move")
    assert len(digits.select("mine", cv=3).notes) == 2  # not once a fold
    assert len(digits.select("mine", refit=False).notes) == 1


def test_epochs_are_chosen_and_the_history_kept(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, SMALL_PROBE)
    seen: list[dict[str, object]] = []
    recipe = Recipe(clf="mine", device="cpu")
    done = select(recipe, digits.validation(recipe), report=seen.append)
    assert sorted(map(str, seen)) == sorted(map(str, done.candidates))
    searched = [h for h in done.history if h["phase"] == "search"]
    refitted = [h for h in done.history if h["phase"] == "refit"]
    assert len(searched) == done.params["schedule_epochs"] == 5
    assert len(refitted) == done.params["epochs"]
    assert max(h["val_accuracy"] for h in searched) == searched[done.params["epochs"] - 1]["val_accuracy"]
    assert set(done.history[0]) == {
        *("epoch", "phase", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "seconds")
    }
    assert done.epoch_seconds is not None
    folds = digits.select("mine", cv=2)
    assert {h["fold"] for h in folds.history if h["phase"] == "search"} == {0, 1}


def test_the_request_is_checked(digits: Digits) -> None:
    with pytest.raises(UsageError, match=r"unknown classifier 'logrek': did you mean logreg"):
        Recipe(clf="logrek")
    with pytest.raises(UsageError, match=r"unknown rule 'one-sd'"):
        Recipe(clf="ridge", rule="one-sd")
    with pytest.raises(UsageError, match=r"--cv 1: expected at least 2 folds"):
        Recipe(clf="ridge", cv=1)
    with pytest.raises(UsageError, match=r"--no-refit keeps the one head"):
        Recipe(clf="ridge", cv=5, refit=False)
    with pytest.raises(UserError, match="fitting needs at least 2"):
        Digits(digits.X, 0 * digits.y).select("ridge")
    with pytest.raises(UserError, match="not finite"):
        Digits(np.full_like(digits.X, np.inf), digits.y).select("ridge")
    with pytest.raises(UserError, match="do not fit"):
        Digits(digits.X, digits.y[1:], val=digits.val[:-1]).select("ridge")


def test_no_test_rows_can_enter() -> None:
    assert not [p for f in (select, validation) for p in inspect.signature(f).parameters if "test" in p]
    assert {f.name for f in dataclasses.fields(Selection)} >= {"head", "val_head", "params", "at_grid_edge", "notes"}
    assert len(NAMES) == 9
