"""Folds: every row is scored once by a head that has not seen it, one by one and nested too."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from selecting import Digits
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import StratifiedKFold

from featcache.common.errors import UsageError
from heads.classifiers import CLASSIFIERS
from heads.features import ArrayFeatures
from heads.folds import stratified, validation
from heads.nested import nested_estimate
from heads.predictors import ABSENT
from heads.recipe import Recipe
from heads.selection import select
from heads.standardization import column_statistics


def test_cross_validation_scores_each_row_once_without_having_seen_it(digits: Digits) -> None:
    done = digits.select("ridge", cv=5, seed=3)
    assert (done.val_rows == np.arange(600)).all()
    assert done.val_head is None
    for train, val in StratifiedKFold(5, shuffle=True, random_state=3).split(digits.X, digits.y):
        mean, scale = column_statistics(ArrayFeatures(digits.X[train]))
        theirs = RidgeClassifier(alpha=done.params["alpha"]).fit((digits.X[train] - mean) / scale, digits.y[train])
        expected = theirs.decision_function((digits.X[val] - mean) / scale)
        np.testing.assert_allclose(done.val_scores[val], expected, atol=2e-3)
    errors = [c["val_error"] for c in done.candidates]
    binomial = [np.sqrt(c["val_accuracy"] * (1 - c["val_accuracy"]) / 600) for c in done.candidates]
    assert errors != binomial
    assert "600 rows, in 5 folds" in done.how


@pytest.mark.parametrize("name", ["logreg", "svm", "svm-rbf", "knn", "centroid", "lda"])
def test_every_classifier_can_be_cross_validated(name: str, digits: Digits) -> None:
    few = Digits(digits.X[:150], digits.y[:150])
    done = few.select(name, cv=3)
    assert done.val_scores.shape == (150, 10)
    assert (done.val_scores.argmax(axis=1) == few.y).mean() > 0.7


def test_rows_of_small_classes_are_all_scored(digits: Digits) -> None:
    rows = np.concatenate(
        [np.flatnonzero(digits.y < 3), np.flatnonzero(digits.y == 7)[:2], np.flatnonzero(digits.y == 9)[:1]]
    )
    few = Digits(digits.X[rows], digits.y[rows])
    done = few.select("lda", cv=4)
    assert (done.val_rows == np.arange(len(rows))).all()
    assert np.isfinite(done.val_scores).all()
    assert done.val_scores[-1, 9] == ABSENT
    assert done.notes[0] == (
        "2 classes have fewer rows than the 4 folds, and no rows to score in some; "
        "the single row of 1 of them is scored without its class being known"
    )
    with pytest.raises(UsageError, match="20 folds: no class has more than 2 rows"):
        stratified(np.array([0, 0, 1, 1]), 20, seed=0)


@pytest.mark.parametrize("name", ["ridge", "lda"])
def test_leave_one_out_is_as_many_folds_as_rows(name: str, digits: Digits) -> None:
    rows = np.flatnonzero(digits.y < 3)[:60]
    few = Digits(digits.X[rows], digits.y[rows])
    done = few.select(name, cv="loo")
    assert (done.val_rows == np.arange(60)).all()
    assert "60 rows, each left out in turn" in done.how
    predicted = []
    for row in range(60):
        rest = np.delete(np.arange(60), row)
        task = few.validation(Recipe(clf=name)).folds.task(rest)
        predicted.append(CLASSIFIERS[name].fit(done.params, task).head.predict(few.X[row : row + 1])[0])
    assert (done.val_scores.argmax(axis=1) == predicted).mean() > 0.95  # but for the standardisation
    with pytest.raises(
        UsageError, match=r"--cv loo: logreg has no exact leave-one-out \(as ridge, lda, centroid have\)"
    ):
        few.select("logreg", cv="loo")


def test_nested_validation_scores_rows_that_the_choice_never_saw(digits: Digits) -> None:
    recipe = Recipe(clf="ridge", nested=3, device="cpu", seed=1)
    told = nested_estimate(recipe, digits.validation(recipe))
    assert told["folds"] == 3
    assert len(told["params"]) == 3
    low, high = told["accuracy_ci95"]
    assert low < told["accuracy"] < high
    right = 0
    for number, (train, val) in enumerate(zip(*stratified(digits.y, 3, seed=1)[:2], strict=True)):
        inner = validation(ArrayFeatures(digits.X[train]), digits.y[train], recipe, n_classes=10)
        done = select(recipe, inner)
        assert done.params == told["params"][number]
        right += int((done.head.predict(digits.X[val]) == digits.y[val]).sum())
    assert told["accuracy"] == right / 600
    inside = nested_estimate(dataclasses.replace(recipe, cv=3), digits.validation(recipe))
    assert inside["accuracy"] == pytest.approx(told["accuracy"], abs=0.05)
