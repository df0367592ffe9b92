"""The solvers as scikit-learn estimators: scikit-learn's own checks, its estimators as referees, and --clf's heads."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest
from selecting import Digits
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

import heads
from heads.classifiers import CLASSIFIERS
from heads.features import ArrayFeatures
from heads.fitting import Params, Task
from heads.head_classifier import HeadClassifier

QUICK: list[HeadClassifier] = [
    heads.RidgePathClassifier(),
    heads.LinearSVMClassifier(C=0.1),
    heads.RBFSVMClassifier(),
    heads.CosineNeighborsClassifier(),
    heads.ShrunkLDAClassifier(),
    heads.CentroidClassifier(),
    heads.LinearProbeClassifier(lr=0.1, epochs=5, batch_size=32),
    heads.MLPProbeClassifier(hidden=16, lr=0.01, epochs=5, batch_size=32),
]
ALPHAS = (100.0, 10.0, 1.0, 0.1)


@parametrize_with_checks(QUICK)
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # checks that want an array API skip by a warning
        check(estimator)


@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_")  # NearestCentroid's, of pixels that are always dark
@pytest.mark.parametrize(
    ("estimator", "referee"),
    [
        (heads.RidgePathClassifier(alphas=ALPHAS), RidgeClassifierCV(alphas=ALPHAS)),
        (heads.RBFSVMClassifier(C=2.0, gamma=0.5), SVC(C=2.0, gamma=0.5 / 64)),
        (heads.CosineNeighborsClassifier(n_neighbors=1), KNeighborsClassifier(1, metric="cosine")),
        (heads.ShrunkLDAClassifier(shrinkage=0.2), LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.2)),
        (heads.CentroidClassifier(), NearestCentroid()),
    ],
    ids=lambda each: type(each).__name__,
)
def test_they_predict_what_scikit_learns_do_behind_a_scaler(digits: Digits, estimator: Any, referee: Any) -> None:
    X, y, new = digits.X[digits.train], digits.y[digits.train], digits.X[digits.val]
    scaler = Normalizer() if isinstance(referee, KNeighborsClassifier) else StandardScaler()
    judge = make_pipeline(scaler, referee).fit(X, y)
    fitted = clone(estimator).fit(X, y)
    np.testing.assert_array_equal(fitted.predict(new), judge.predict(new))
    if isinstance(referee, LinearDiscriminantAnalysis):
        np.testing.assert_allclose(fitted.predict_proba(new), judge.predict_proba(new), atol=1e-4)
    if isinstance(referee, RidgeClassifierCV):
        assert fitted.alpha_ == judge[-1].alpha_
        np.testing.assert_allclose(fitted.decision_function(new), judge.decision_function(new), atol=1e-4)
        assert fitted.loo_mse_.argmin() == ALPHAS.index(fitted.alpha_)


def test_a_linear_svm_is_linear_svc_but_for_the_intercept(digits: Digits) -> None:
    scaler = StandardScaler().fit(digits.X[digits.train])
    judge = LinearSVC(C=0.01, intercept_scaling=1000, tol=1e-6, max_iter=100_000)
    judge.fit(scaler.transform(digits.X[digits.train]), digits.y[digits.train])
    fitted = heads.LinearSVMClassifier(C=0.01).fit(digits.X[digits.train], digits.y[digits.train])
    np.testing.assert_allclose(fitted.coef_ * scaler.scale_, judge.coef_, atol=5e-3)


@pytest.mark.parametrize(
    ("estimator", "params"),
    [
        (heads.LinearSVMClassifier(C=0.01), {"C": 0.01}),
        (heads.RBFSVMClassifier(), {"C": 1.0, "gamma": 1 / 64, "kernel": "exact"}),
        (heads.CosineNeighborsClassifier(), {"k": 20, "temperature": 0.07}),
        (heads.ShrunkLDAClassifier(), {"shrinkage": 0.1}),
        (heads.CentroidClassifier(), {}),
        (
            heads.LinearProbeClassifier(epochs=2, weight_decay=0.1, random_state=3),
            {
                "optimizer": "adamw",
                "lr": 0.01,
                "weight_decay": 0.1,
                "batch_size": 16,
                "schedule_epochs": 2,
                "epochs": 2,
            },
        ),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, HeadClassifier) else "",
)
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_they_fit_what_clf_fits(digits: Digits, estimator: Any, params: Params, class_weight: str | None) -> None:
    rows = digits.train[digits.y[digits.train] < 2]
    rows = np.concatenate([rows, digits.train[100:200]])  # ten classes of unequal size
    X, y = digits.X[rows], digits.y[rows]
    weights = None
    if class_weight and "class_weight" in estimator.get_params():
        estimator = clone(estimator).set_params(class_weight=class_weight)
        weights = (len(y) / (10 * np.bincount(y)))[y]
    task = Task(
        X=ArrayFeatures(X), y=y, n_classes=10, weights=weights, seed=estimator.get_params().get("random_state", 0)
    )
    head = CLASSIFIERS[estimator.CLF].fit(params, task).head
    fitted = pickle.loads(pickle.dumps(estimator.fit(X, y)))
    new = digits.X[digits.val]
    np.testing.assert_allclose(fitted.decision_function(new), head.scores(new), atol=1e-4, rtol=1e-4)
    np.testing.assert_array_equal(fitted.predict(new), head.predict(new))


def test_a_search_in_a_pipeline_chooses(digits: Digits) -> None:
    pipeline = make_pipeline(StandardScaler(), heads.ShrunkLDAClassifier())
    search = GridSearchCV(pipeline, {"shrunkldaclassifier__shrinkage": [1.0, 0.1]}, cv=3).fit(digits.X, digits.y)
    assert search.best_params_ == {"shrunkldaclassifier__shrinkage": 0.1}
    assert search.best_score_ > 0.85


@pytest.mark.parametrize(
    ("estimator", "told"),
    [
        (heads.RidgePathClassifier(alphas=()), "alphas is (); expected numbers above 0"),
        (heads.LinearSVMClassifier(C=0.0), "C is 0.0; expected a number above 0"),
        (heads.RBFSVMClassifier(gamma=-1.0), "gamma is -1.0; expected a number above 0"),
        (heads.CosineNeighborsClassifier(n_neighbors=0), "n_neighbors is 0"),
        (heads.ShrunkLDAClassifier(shrinkage=1.5), "shrinkage is 1.5; expected a number from 0 to 1"),
        (heads.LinearProbeClassifier(optimizer="lbfgs"), "optimizer is 'lbfgs'; expected adamw or sgd"),
        (heads.MLPProbeClassifier(hidden=0), "hidden is 0"),
        (heads.MLPProbeClassifier(epochs=0), "epochs is 0"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(digits: Digits, estimator: HeadClassifier, told: str) -> None:
    with pytest.raises(ValueError, match=r"expected") as caught:
        estimator.fit(digits.X[:50], digits.y[:50])
    assert told in str(caught.value)


def test_names_are_found_when_used() -> None:
    for name in heads.__all__:
        assert getattr(heads, name).__name__ == name
    assert set(heads.__all__) <= set(dir(heads))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = heads.Nothing


@pytest.mark.parametrize("estimator", QUICK, ids=lambda each: type(each).__name__)
def test_a_class_needs_a_weight_above_zero(digits: Digits, estimator: HeadClassifier) -> None:
    X, y = digits.X[:60], digits.y[:60] % 3
    if "class_weight" not in estimator.get_params():
        return
    for weight, message in ((0.0, "rows of class 0 have weight 0 together"), (-1.0, "Negative values in weights")):
        with pytest.raises(ValueError, match=message):
            clone(estimator).set_params(class_weight={0: weight, 1: 1.0, 2: 1.0}).fit(X, y)
