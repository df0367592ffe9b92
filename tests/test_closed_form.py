"""Ridge, lda and centroid: scikit-learn fits the same, and leaving each row out is fitting without it."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeClassifier, RidgeClassifierCV
from sklearn.neighbors import NearestCentroid
from views import viewed

from featcache.common.errors import UserError
from heads import closed_form, summaries
from heads.classifiers import CLASSIFIERS
from heads.closed_form import ClosedForm
from heads.features import ArrayFeatures
from heads.fitting import Folds, Params, Task
from heads.predictors import ABSENT, LinearHead
from heads.ridge import RidgePath
from heads.summaries import WideSummary, fold_summaries, summary

NAMES = ("ridge", "lda", "centroid")
ALPHAS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)


def data(n: int, d: int, k: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unequal classes that overlap; columns of different spread, far from 0."""
    rng = np.random.default_rng(seed)
    y = np.minimum(rng.integers(0, k, n), rng.integers(0, k, n))
    y[:k] = np.arange(k)
    X = rng.normal(size=(n, d)) * np.linspace(0.3, 2.0, d) + 5
    X[:, : min(d, 4)] += 0.8 * y[:, None]
    return X.astype(np.float32), y


def closed(name: str) -> ClosedForm:
    classifier = CLASSIFIERS[name]
    assert isinstance(classifier, ClosedForm)
    return classifier


def task_of(X: np.ndarray, y: np.ndarray, k: int, weights: np.ndarray | None = None) -> Task:
    return Task(X=ArrayFeatures(X), y=y, n_classes=k, weights=weights, device="cpu")


def balanced(X: np.ndarray, y: np.ndarray, k: int) -> Task:
    folds = Folds(X=ArrayFeatures(X), y=y, n_classes=k, train=(), val=(), class_weight="balanced")
    return folds.task(np.arange(len(y)))


# leaving one out


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n", "d", "k"), [(60, 8, 3), (200, 30, 2), (30, 80, 4), (65, 64, 3), (400, 64, 10)])
def test_the_ridge_path_is_ridge_classifier_cv(n: int, d: int, k: int, weighted: bool) -> None:
    X, y = data(n, d, k)
    w = np.random.default_rng(1).uniform(0.5, 2.0, n) if weighted else None
    mine = RidgePath(alphas=ALPHAS).fit(X, y, w)
    theirs = RidgeClassifierCV(alphas=ALPHAS, store_cv_results=True).fit(X.astype(np.float64), y, sample_weight=w)
    columns = [1] if k == 2 else list(range(k))
    # what scikit-learn keeps are squared errors (N, K, A), each times its row's weight
    targets = np.where(y[:, None] == np.arange(k), 1.0, -1.0)
    errors = np.abs(targets - mine.loo_predictions_)[:, :, columns].transpose(1, 2, 0)
    root = np.sqrt(np.ones(n) if w is None else w)[:, None, None]
    np.testing.assert_allclose(errors * root, np.sqrt(theirs.cv_results_), atol=1e-6)
    assert mine.alpha_ == theirs.alpha_
    assert -mine.loo_mse_.min() * (1 if w is None else w.mean()) == pytest.approx(theirs.best_score_)
    best = ALPHAS.index(mine.alpha_)
    np.testing.assert_allclose(mine.coefs_[best][columns], np.atleast_2d(theirs.coef_), atol=1e-8)
    np.testing.assert_allclose(mine.intercepts_[best][columns], theirs.intercept_, atol=1e-6)
    assert mine.coefs_.shape == (len(ALPHAS), k, d)
    assert mine.intercepts_.shape == (len(ALPHAS), k)


def test_float32_leaves_out_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = data(400, 64, 5)
    exact = RidgePath(alphas=ALPHAS).fit(X, y)
    monkeypatch.setattr(summaries, "PRECISE_ROWS", 100)
    quick = RidgePath(alphas=ALPHAS).fit(X, y)
    assert (exact.loo_predictions_ != quick.loo_predictions_).any()
    np.testing.assert_allclose(quick.loo_predictions_, exact.loo_predictions_, atol=2e-5)


def test_labels_may_be_anything() -> None:
    X, y = data(50, 6, 3)
    named = np.array(["ant", "bee", "cat"])[y]
    assert RidgePath().fit(X, named).classes_.tolist() == ["ant", "bee", "cat"]
    assert 0.5 < RidgePath().fit(X, named).loo_accuracy_.max() <= 1


def without(classifier: ClosedForm, chain: list[Params], task: Task, row: int) -> np.ndarray:
    """The scores (A, K) of a row by fits on the others, all in the standardisation of all rows."""
    kept = np.arange(len(task.y)) != row
    weights = None if task.weights is None else task.weights[kept]
    rest = summary(task_of(task.Z[kept], task.y[kept], task.n_classes, weights), standardize=False)
    solve = classifier.solver(rest)
    scores = np.full((len(chain), task.n_classes), ABSENT)
    for i, params in enumerate(chain):
        weight, bias = solve(params)
        scores[i, rest.present] = weight @ (task.Z[row] - rest.mean.astype(np.float64)) + bias
    return scores


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n", "d"), [(40, 6), (20, 40), (60, 40)])
@pytest.mark.parametrize("name", NAMES)
def test_leaving_out_is_fitting_without(name: str, n: int, d: int, weighted: bool) -> None:
    X, y = data(n, d, 4)
    y[y == 3] = 2
    y[0], k = 4, 6  # class 4 has one row, 3 and 5 have none
    w = np.random.default_rng(1).uniform(0.5, 2.0, n) if weighted else None
    task, classifier = task_of(X, y, k, w), closed(name)
    chain = classifier.chains(n, d, n)[0]
    refitted = np.stack([without(classifier, chain, task, row) for row in range(n)], axis=1)
    found = list(classifier.leave_one_out(chain, task))
    assert [params for params, _ in found] == chain
    for (params, scores), expected in zip(found, refitted, strict=True):
        assert scores.shape == (n, k)
        assert ((scores > ABSENT / 2) == (expected > ABSENT / 2)).all()
        assert scores[0, 4] == np.float32(ABSENT)
        there = np.where(expected > ABSENT / 2, 1, 0)

        def apart(s: np.ndarray, there: np.ndarray = there) -> np.ndarray:  # lda's depend on the origin, alike for all
            s = np.where(there, s, 0.0)
            return np.where(there, s - s.sum(axis=1, keepdims=True) / there.sum(axis=1, keepdims=True), 0.0)

        largest = np.abs(expected * there).max()
        np.testing.assert_allclose(apart(scores), apart(expected), atol=3e-5 * largest, err_msg=str(params))


def test_candidates_that_do_not_fit_at_once_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = data(50, 6, 3)
    for name in NAMES:
        chain = closed(name).chains(50, 6, 50)[0]
        whole = [scores for _, scores in closed(name).leave_one_out(chain, task_of(X, y, 3))]
        monkeypatch.setattr(closed_form, "_LEFT_OUT", 2 * 50 * 3)
        parts = [scores for _, scores in closed(name).leave_one_out(chain, task_of(X, y, 3))]
        monkeypatch.undo()
        np.testing.assert_allclose(parts, whole, rtol=1e-6)


def test_leaving_out_needs_plain_images() -> None:
    X, y = data(20, 6, 2)
    task = Folds(X=viewed(X, 2), y=y, n_classes=2, train=(), val=()).task(np.arange(20))
    with pytest.raises(UserError, match="leave-one-out takes plain images, the rows are 2 views of each"):
        next(closed("ridge").leave_one_out([{"alpha": 1.0}], task))


# weights


@pytest.mark.parametrize(("n", "d"), [(300, 10), (40, 60)])
@pytest.mark.parametrize("k", [2, 4])
def test_class_weights_are_scikit_learns(n: int, d: int, k: int) -> None:
    X, y = data(n, d, k)
    X_new, _ = data(100, d, k, seed=1)
    task = balanced(X, y, k)
    assert task.weights is not None
    mean, scale = task.statistics
    Z, Z_new = task.Z.astype(np.float64), (X_new.astype(np.float64) - mean) / scale

    def scores(name: str, params: Params, task: Task = task) -> np.ndarray:
        return closed(name).fit(params, task).head.scores(X_new)

    ridge = scores("ridge", {"alpha": 3.0})
    theirs = RidgeClassifier(alpha=3.0, class_weight="balanced", solver="cholesky").fit(Z, y).decision_function(Z_new)
    np.testing.assert_allclose(ridge if k > 2 else ridge[:, 1], theirs, atol=1e-4)
    lda = scores("lda", {"shrinkage": 0.2})
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.2, priors=np.full(k, 1 / k)).fit(Z, y)
    expected = model.decision_function(Z_new)
    off = lda - expected if k > 2 else (lda[:, 1] - lda[:, 0] - expected)[:, None] * [0, 1]
    assert np.abs(off - off.mean(axis=1, keepdims=True)).max() < 1e-3 * np.abs(expected).max()
    plain = task_of(X, y, k)
    assert not np.allclose(lda, scores("lda", {"shrinkage": 0.2}, plain), atol=1e-2)
    centroid = scores("centroid", {})
    np.testing.assert_allclose(centroid, scores("centroid", {}, plain), rtol=1e-4, atol=1e-4)
    assert (centroid.argmax(axis=1) == NearestCentroid().fit(Z, y).predict(Z_new)).all()
    assert "change nothing" in closed("centroid").note({}, task)
    assert closed("centroid").note({}, plain) == closed("lda").note({}, task) == ""


# streams


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_views", [1, 3])
def test_nothing_is_loaded_where_there_are_more_rows_than_columns(name: str, n_views: int) -> None:
    X, y = data(90, 8, 3)
    val = tuple(np.arange(f, 90, 3) for f in range(3))
    train = tuple(np.setdiff1d(np.arange(90), rows) for rows in val)
    folds = Folds(X=viewed(X, n_views, noise=0.1, streamed=True), y=y, n_classes=3, train=train, val=val)
    classifier = closed(name)
    chain = classifier.chains(60, 8, 90)[0]
    for trial in classifier.search(chain, folds):
        for number in range(3):
            again = classifier.fit(trial.params, folds.task(train[number])).head
            fitted = trial.fitted[number].head
            assert isinstance(fitted, LinearHead)
            assert isinstance(again, LinearHead)
            np.testing.assert_allclose(fitted.mean, again.mean, rtol=1e-6)
            np.testing.assert_allclose(fitted.weight, again.weight, rtol=1e-3, atol=1e-4 * np.abs(again.weight).max())
            assert trial.scores[number].shape == (30, 3)


@pytest.mark.parametrize("name", NAMES)
def test_wide_and_tall_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = data(30, 40, 3)
    val = (np.arange(0, 30, 2),)
    folds = Folds(X=ArrayFeatures(X), y=y, n_classes=3, train=(np.arange(1, 30, 2),), val=val)
    params = closed(name).chains(15, 40, 30)[0][-3:-2] or [{}]
    assert isinstance(fold_summaries(folds)[0], WideSummary)
    (by_rows,) = closed(name).search(params, folds)
    monkeypatch.setattr(closed_form, "fold_summaries", lambda folds: [summaries.tall(m) for m in moments(folds)])
    from heads.moments import fold_moments as moments

    (by_scatter,) = closed(name).search(params, folds)
    np.testing.assert_allclose(by_rows.scores[0], by_scatter.scores[0], rtol=1e-3, atol=1e-3)
