"""Logistic paths against scikit-learn's solver, on many shapes, in numpy and by torch, folds together and apart."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from scipy import special
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

import heads.logistic
import heads.softmax_objective
from heads.features import ArrayFeatures
from heads.fitting import Folds
from heads.logistic import LogisticClassifier, LogisticPath
from heads.logreg import LogReg
from heads.softmax_objective import SoftmaxObjective

CS = (0.001, 0.1, 1.0, 100.0)


def objective(X: np.ndarray, y: np.ndarray, weights: np.ndarray, coef: Any, intercept: Any, C: float) -> float:
    """Mean loss plus penalty, float64, as scikit-learn's objective divided by C and the rows' weight."""
    scores = X.astype(np.float64) @ coef.T + intercept
    if scores.shape[1] == 1:
        scores = np.concatenate([0 * scores, scores], axis=1)
    losses = -special.log_softmax(scores, axis=1)[np.arange(len(y)), y]
    return float((weights * losses).sum() / weights.sum() + 0.5 * (coef**2).sum() / (C * weights.sum()))


def problem(n: int, d: int, k: int, *, offset: float = 0.0, pull: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n + d + k)
    y = rng.permutation(np.arange(n) % k)
    X = rng.normal(size=(n, d)) * np.linspace(0.3, 2, d)
    X[:, : min(k, d)] += pull * np.eye(k)[y][:, : min(k, d)]
    return X + offset, y


SHAPES = {
    "tall": (300, 20, 3, {}),
    "two classes": (300, 20, 2, {}),
    "wide": (60, 200, 4, {}),
    "far from zero": (300, 10, 3, {"offset": 1000.0}),
    "separable": (200, 30, 3, {"pull": 12.0}),
    "as many classes as rows allow": (400, 12, 100, {}),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_objective_is_scikit_learns(shape: str, weighted: bool) -> None:
    n, d, k, how = SHAPES[shape]
    X, y = problem(n, d, k, **how)
    class_weight = {c: 1.0 + c % 3 for c in range(k)} if weighted else None
    weights = 1.0 + (y % 3 if weighted else 0 * y).astype(np.float64)
    path = LogisticPath(Cs=CS, class_weight=class_weight).fit(X, y)
    assert path.coefs_.shape == (len(CS), 1 if k == 2 else k, d)
    center = X.mean(axis=0)  # for the referee's sake, whose solver dislikes what is far from zero
    for C, coef, intercept, certified in zip(CS, path.coefs_, path.intercepts_, path.certified_gaps_, strict=True):
        referee = LogisticRegression(C=C, class_weight=class_weight, tol=1e-9, max_iter=50_000).fit(X - center, y)
        best = objective(X - center, y, weights, referee.coef_, referee.intercept_, C)
        mine = objective(X - center, y, weights, coef, intercept + coef @ center, C)
        assert mine - best < 1e-6 * best, C
        assert mine - best < certified * mine + 1e-12, "the duality gap is an upper bound"


def test_a_constant_column_gets_no_weight() -> None:
    X, y = problem(200, 6, 3)
    X[:, 2] = 7.0
    path = LogisticPath(Cs=(1.0,)).fit(X, y)
    assert np.abs(path.coefs_[0][:, 2]).max() < 1e-6


def test_a_thousand_classes() -> None:
    X, y = problem(3000, 16, 1000)
    path = LogisticPath(Cs=(0.1,)).fit(X, y)
    referee = LogisticRegression(C=0.1, tol=1e-8, max_iter=10_000).fit(X, y)
    ones = np.ones(len(y))
    best = objective(X, y, ones, referee.coef_, referee.intercept_, 0.1)
    assert objective(X, y, ones, path.coefs_[0], path.intercepts_[0], 0.1) < best * (1 + 1e-6)


def test_large_problems_in_float32_come_as_close() -> None:
    X, y = problem(6000, 60, 5)
    assert X.size > heads.softmax_objective.SMALL
    path = LogisticPath(Cs=(0.01, 1.0)).fit(X, y)
    for C, coef, intercept in zip(path.Cs, path.coefs_, path.intercepts_, strict=True):
        referee = LogisticRegression(C=C, tol=1e-9, max_iter=50_000).fit(X, y)
        best = objective(X, y, np.ones(len(y)), referee.coef_, referee.intercept_, C)
        assert abs(objective(X, y, np.ones(len(y)), coef, intercept, C) - best) < 1e-6 * best


def test_the_order_of_cs_is_kept() -> None:
    X, y = problem(150, 8, 3)
    up, down = LogisticPath(Cs=CS).fit(X, y), LogisticPath(Cs=CS[::-1]).fit(X, y)
    np.testing.assert_array_equal(up.coefs_, down.coefs_[::-1])
    assert (np.diff((up.coefs_**2).sum(axis=(1, 2))) > 0).all()


def test_not_converging_is_a_warning() -> None:
    X, y = problem(300, 20, 3)
    with pytest.warns(ConvergenceWarning, match="C = 1: stopped after"):
        LogisticPath(Cs=(1.0,), max_iter=3).fit(X, y)


@pytest.mark.parametrize("bad", [(), (0.0,), (1.0, -1.0)])
def test_cs_are_above_zero(bad: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="expected numbers above 0"):
        LogisticPath(Cs=bad).fit(*problem(50, 4, 2))


@parametrize_with_checks([LogisticClassifier()])
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # checks that want pandas or an array API skip by a warning
        check(estimator)


@pytest.mark.parametrize("k", [2, 4])
def test_torch_gives_what_numpy_gives(k: int) -> None:
    X, y = problem(500, 12, k)
    rng = np.random.default_rng(0)
    weights = rng.uniform(0, 2, (len(y), 3))
    shared = {"X": X.astype(np.float32), "codes": y.astype(np.int64), "weights": weights, "n_classes": k}
    by_numpy = SoftmaxObjective(**shared)
    by_torch = SoftmaxObjective(**shared, device="cpu:0")  # torch's name of the processor: its lines, without a GPU
    points, directions = rng.normal(size=(2, 2, by_numpy.n_rows, 13))
    some = np.array([2, 0])
    mine, theirs = by_numpy(points, some), by_torch(points, some)
    assert by_torch._there.shape == X.shape
    in_blocks = SoftmaxObjective(**shared, device="cpu:0")
    in_blocks.__dict__["_there"] = None  # as where they take too much of a GPU's memory
    assert np.array_equal(in_blocks(points, some).gradient, theirs.gradient)
    np.testing.assert_allclose(mine.loss, theirs.loss, rtol=1e-5)
    np.testing.assert_allclose(mine.gradient, theirs.gradient, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        by_numpy.curve(points, directions, some, by_numpy.keep_probabilities(points, some)),
        by_torch.curve(points, directions, some, None),
        rtol=1e-3,
        atol=1e-5,
    )


def test_the_gradient_is_the_losss_and_the_curve_the_gradients() -> None:
    X, y = problem(80, 5, 3)
    whole = SoftmaxObjective(X=X, codes=y.astype(np.int64), weights=np.ones((80, 1)), n_classes=3)
    rng = np.random.default_rng(1)
    point, step = rng.normal(size=(2, 1, 3, 6))
    only = np.array([0])
    up, down = whole(point + 1e-5 * step, only), whole(point - 1e-5 * step, only)
    assert (up.loss[0] - down.loss[0]) / 2e-5 == pytest.approx((whole(point, only).gradient * step).sum(), rel=1e-6)
    np.testing.assert_allclose(
        (up.gradient - down.gradient) / 2e-5, whole.curve(point, step, only, None), rtol=1e-4, atol=1e-8
    )


@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_folds_together_find_what_each_finds_alone(class_weight: str | None) -> None:
    X, y = problem(240, 15, 4)
    number = np.arange(len(y)) % 3
    folds = Folds(
        X=ArrayFeatures(X.astype(np.float32)),
        y=y.astype(np.int64),
        n_classes=4,
        train=tuple(np.flatnonzero(number != i) for i in range(3)),
        val=tuple(np.flatnonzero(number == i) for i in range(3)),
        class_weight=class_weight,
    )
    for trial in LogReg(C=(0.01, 1.0)).search([{"C": 0.01}, {"C": 1.0}], folds):
        for i, fitted in enumerate(trial.fitted):
            alone = LogReg(C=()).fit(trial.params, folds.task(folds.train[i])).head
            np.testing.assert_allclose(fitted.head.scores(X), alone.scores(X), atol=0.02)
            np.testing.assert_array_equal(trial.scores[i], fitted.head.scores(X[folds.val[i]].astype(np.float32)))


def test_streamed_rows_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = problem(3000, 10, 3)
    folds = Folds(
        X=ArrayFeatures(X.astype(np.float16)),
        y=y.astype(np.int64),
        n_classes=3,
        train=(np.arange(2000),),
        val=(np.arange(2000, 3000),),
    )
    (kept,) = LogReg(C=(1.0,)).search([{"C": 1.0}], folds)
    monkeypatch.setattr(heads.softmax_objective, "KEPT_BYTES", 0)
    (streamed,) = LogReg(C=(1.0,)).search([{"C": 1.0}], folds)
    np.testing.assert_allclose(kept.scores[0], streamed.scores[0], atol=0.02)


def hard(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Features whose informative directions vary little beside others or beside the penalty."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 5, 1500)
    noise, centers = rng.normal(size=(1500, 60)), rng.normal(size=(5, 60))
    if name.startswith("common factor"):
        X = rng.normal(size=(1500, 1)) + float(name.split()[-1]) * (noise + centers[y])
        return (X - X.mean(axis=0)) / X.std(axis=0), y
    X = noise + 0.3 * centers[y]
    if name == "rows of length 1":
        X += 2 * rng.normal(size=60)
        return X / np.linalg.norm(X, axis=1, keepdims=True), y
    return float(name.split()[-1]) * X, y


@pytest.mark.parametrize("in_double", [False, True])
@pytest.mark.parametrize(
    ("name", "C"),
    [
        ("common factor 0.03", 1.0),
        ("common factor 0.03", 1e4),
        ("common factor 0.01", 100.0),
        ("rows of length 1", 1.0),
        ("scale 0.01", 1e4),
        ("scale 0.001", 1e6),
    ],
)
def test_converged_is_near_the_minimum(name: str, C: float, in_double: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 100 tolerances above it, or not converged; and never farther than the certified gap."""
    if not in_double:
        monkeypatch.setattr(heads.logistic, "SMALL", 0)
    X, y = hard(name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted = LogisticClassifier(C=C).fit(X, y)
    referee = LogisticRegression(C=C, tol=1e-9, max_iter=1000, solver="newton-cholesky").fit(X, y)
    ones = np.ones(len(y))
    best = objective(X, y, ones, referee.coef_, referee.intercept_, C)
    gap = objective(X, y, ones, fitted.coef_, fitted.intercept_, C) / best - 1
    assert gap <= fitted.certified_gap_ + 1e-7
    assert fitted.gap_ <= fitted.certified_gap_
    if caught:
        assert [warning.category for warning in caught] == [ConvergenceWarning]
        assert not fitted.gap_ <= 1e-6 or fitted.certified_gap_ > 1e-4
    else:
        assert fitted.certified_gap_ <= 1e-4
    assert gap < 1e-4


@pytest.mark.parametrize("max_iter", [1, 5, 7, 12, 20])
def test_far_from_the_minimum_the_certified_gap_is_still_a_bound(max_iter: int) -> None:
    """Where intercepts are not level, which the gradient's norm alone does not see."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 5))
    for y in ((rng.random(300) < 0.05).astype(int), np.minimum(rng.integers(0, 20, 300), 2)):
        with pytest.warns(ConvergenceWarning, match=r"at most \S+ \(relative\) above its minimum") as caught:
            path = LogisticPath(Cs=(1e-4, 1.0), max_iter=max_iter).fit(X, y)
        assert len(caught) == 2
        assert (path.n_iter_ <= max(max_iter, 2)).all()
        for C, value, certified in zip(path.Cs, path.objectives_, path.certified_gaps_, strict=True):
            referee = LogisticRegression(C=C, tol=1e-9, max_iter=1000).fit(X, y)
            best = objective(X, y, np.ones(300), referee.coef_, referee.intercept_, C)
            assert 0 < value - best <= certified * value


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_constant_features_give_the_prior(share: float) -> None:
    y = (np.arange(100) < 100 * share).astype(int)
    fitted = LogisticClassifier().fit(np.ones((100, 4)), y)
    np.testing.assert_allclose(fitted.predict_proba(np.ones((1, 4))), [[1 - share, share]], atol=1e-5)
    assert 0 <= fitted.gap_ <= fitted.certified_gap_ <= 1e-10


def test_what_is_not_a_number_has_not_converged() -> None:
    """A column that overflows float32 when squared."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(3000, 100)).astype(np.float32)
    X[:, 3] *= 1e20
    assert X.size > heads.softmax_objective.SMALL
    with pytest.warns(ConvergenceWarning, match="C = 1:"):
        fitted = LogisticClassifier().fit(X, rng.integers(0, 3, 3000))
    assert not fitted.certified_gap_ <= 1e-4


def test_weights_are_checked() -> None:
    X, y = problem(60, 4, 2)
    for weights in (-np.ones(60), np.where(np.arange(60) == 3, -0.1, 1.0)):
        with pytest.raises(ValueError, match="Negative values in weights"):
            LogisticClassifier().fit(X, y, sample_weight=weights)
    with pytest.raises(ValueError, match="weight"):
        LogisticClassifier().fit(X, y, sample_weight=np.zeros(60))
    with pytest.raises(ValueError, match="rows of class 1 have weight 0 together"):
        LogisticPath().fit(X, y, sample_weight=1.0 - y)
