"""Support vector machines with row weights and views, beside scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from views import viewed

from heads import margins
from heads.classifiers import CLASSIFIERS
from heads.duality_gaps import squared_hinge_gaps
from heads.features import ArrayFeatures, Features
from heads.fitting import Folds, Params, Task
from heads.spectra import spectrum_about_mean
from heads.squared_hinge import GAP, squared_hinge

KERNEL: Params = {"C": 1.0, "gamma": 0.05}
EXACT, LANDMARKS = KERNEL | {"kernel": "exact"}, KERNEL | {"kernel": "nystroem", "n_landmarks": 60}


def data(n: int = 240, k: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """One class in eight rows of nine."""
    rng = np.random.default_rng(0)
    y = np.where(rng.random(n) < 0.8, 0, rng.integers(0, k, n))
    X = rng.normal(size=(n, 8)) + 0.9 * np.eye(k, 8)[y]
    return X.astype(np.float32), y


def task_of(X: Features, y: np.ndarray, class_weight: str | None = "balanced") -> Task:
    folds = Folds(X=X, y=y, n_classes=int(y.max()) + 1, train=(), val=(), class_weight=class_weight, device="cpu")
    return folds.task(np.arange(len(y)))


def scores(name: str, params: Params, task: Task, X: np.ndarray) -> np.ndarray:
    fitted = CLASSIFIERS[name].fit(params, task)
    assert fitted.converged
    return fitted.head.scores(X)


@pytest.mark.parametrize("k", [2, 3])
def test_class_weights_of_the_linear_svm_are_linear_svcs(k: int) -> None:
    X, y = data(k=k)
    task = task_of(ArrayFeatures(X), y)
    for C in (0.003, 0.1):
        mine = scores("svm", {"C": C}, task, X)
        svc = LinearSVC(C=C, intercept_scaling=30.0, dual=False, tol=1e-7, max_iter=10_000)
        # of several classes liblinear applies a class's weight where it is set against the rest, and not among the rest
        if k == 2:
            svc.set_params(class_weight="balanced").fit(task.Z, y)
        else:
            svc.fit(task.Z, y, sample_weight=task.weights)
        theirs = svc.decision_function(task.Z)
        assert np.abs((mine if k > 2 else mine[:, 1]) - theirs).max() < 0.02 * np.abs(theirs).max()
        unweighted = scores("svm", {"C": C}, task_of(ArrayFeatures(X), y, None), X)
        assert np.abs(mine - unweighted).max() > 0.1 * np.abs(theirs).max()


@pytest.mark.parametrize("k", [2, 3])
def test_class_weights_of_the_rbf_svm_are_svcs(k: int) -> None:
    X, y = data(k=k)
    task = task_of(ArrayFeatures(X), y)
    svc = SVC(C=1.0, gamma=0.05, class_weight="balanced", break_ties=k > 2).fit(task.Z.astype(np.float64), y)
    mine = scores("svm-rbf", EXACT, task, X)
    assert (mine.argmax(axis=1) == svc.predict(task.Z)).all()
    if k > 2:
        np.testing.assert_allclose(mine, svc.decision_function(task.Z), atol=2e-3)
    unweighted = scores("svm-rbf", EXACT, task_of(ArrayFeatures(X), y, None), X)
    assert (mine.argmax(axis=1) != unweighted.argmax(axis=1)).mean() > 0.05
    landmarks = scores("svm-rbf", LANDMARKS, task, X).argmax(axis=1)
    assert (landmarks == mine.argmax(axis=1)).mean() > (landmarks == unweighted.argmax(axis=1)).mean()


@pytest.mark.parametrize(
    ("name", "params"), [("svm", {"C": 0.05}), ("svm-rbf", EXACT), ("ridge", {"alpha": 30.0}), ("logreg", {"C": 0.05})]
)
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_a_penalty_means_the_same_with_many_views(name: str, params: Params, class_weight: str | None) -> None:
    """Views that are copies change nothing."""
    X, y = data()
    one = scores(name, params, task_of(viewed(X), y, class_weight), X)
    many = scores(name, params, task_of(viewed(X, 4), y, class_weight), X)
    assert np.abs(one - many).max() < 0.01 * np.abs(one).max()


def test_views_are_counted_before_a_kernel_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = data(120)
    classifier = CLASSIFIERS["svm-rbf"]
    val = (np.arange(0, 120, 3),)
    train = (np.setdiff1d(np.arange(120), val[0]),)
    chain = classifier.chains(80, 8, 120)[0]
    monkeypatch.setattr(margins, "EXACT_ROWS", 200)
    for n_views, kernel in ((1, "exact"), (2, "nystroem")):
        folds = Folds(X=viewed(X, n_views, noise=0.1), y=y, n_classes=3, train=train, val=val)
        (trial,) = classifier.search(chain[:1], folds)
        assert trial.params["kernel"] == kernel


def objectives(X: np.ndarray, signs: np.ndarray, W: np.ndarray, b: np.ndarray, C: float) -> np.ndarray:
    slack = np.maximum(0, 1 - signs * (X.astype(np.float64) @ W.T + b))
    return np.asarray(0.5 * (W**2).sum(axis=1) + C * (slack**2).sum(axis=0))


@pytest.mark.parametrize("C", [0.01, 1.0, 10.0, 100.0])
def test_a_linear_svm_that_converged_is_near_its_minimum(C: float) -> None:
    """liblinear's weights are the referee; its objective without the intercept's penalty is at least the minimum."""
    X, y = load_digits(return_X_y=True)
    X, y = StandardScaler().fit_transform(X[:300]).astype(np.float32), y[:300]
    signs = np.where(y[:, None] == np.arange(10), 1.0, -1.0)
    found, message = squared_hinge(X, y, 10, C=C, eigen=spectrum_about_mean(X))
    referee = LinearSVC(C=C, dual=False, tol=1e-6, intercept_scaling=100, max_iter=10_000).fit(X.astype(np.float64), y)
    best = objectives(X, signs, referee.coef_, referee.intercept_, C)
    mine = objectives(X, signs, found[:, :-1], found[:, -1], C)
    assert message or (mine / best - 1).max() <= GAP
    if C < 10:
        assert message == ""
    gaps, values = squared_hinge_gaps(X, signs.astype(np.float32), found[:, :-1], found[:, -1], C=C)
    np.testing.assert_allclose(values, mine, rtol=1e-5)
    assert (mine - best <= (gaps + 1e-5) * mine).all()
    assert (gaps.max() <= GAP) == (message == "")


@pytest.mark.parametrize("weighted", [False, True])
def test_the_gap_of_a_linear_svm_is_a_bound_anywhere(weighted: bool) -> None:
    rng = np.random.default_rng(0)
    X, y = data()
    counts = rng.uniform(0.2, 3, len(y)) if weighted else np.ones(len(y))
    signs = np.where(y[:, None] == np.arange(3), np.float32(1), np.float32(-1))
    for C in (0.01, 1.0):
        found, _ = squared_hinge(X, y, 3, C=C, eigen=spectrum_about_mean(X, counts), weights=counts)
        _, least = squared_hinge_gaps(X, signs, found[:, :-1], found[:, -1], C=C, row_weights=counts)
        for size in (0.0, 0.01, 0.1, 1.0):
            W, b = found[:, :-1] + size * rng.normal(size=(3, 8)), found[:, -1] + size * rng.normal(size=3)
            gaps, values = squared_hinge_gaps(X, signs, W, b, C=C, row_weights=counts if weighted else None)
            assert (values - least <= gaps * values + 1e-5 * values).all()
            assert (gaps > -1e-5).all()
            assert size or (gaps <= GAP).all()
