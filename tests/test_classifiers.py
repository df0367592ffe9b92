"""One battery for all classifiers, and scikit-learn as the referee where it fits the same model."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import NearestCentroid
from sklearn.svm import SVC, LinearSVC
from views import viewed

from heads import margins
from heads.classifiers import CLASSIFIERS, NAMES
from heads.evidence.metrics import softmax
from heads.features import as_features
from heads.fitting import Fitted, Folds, Params, Task, averaged_scores
from heads.standardization import column_statistics

MIDDLE: dict[str, Params] = {
    "logreg": {"C": 0.1},
    "linear": {
        "optimizer": "adamw",
        "lr": 1e-2,
        "weight_decay": 0.1,
        "batch_size": 64,
        "schedule_epochs": 8,
        "epochs": 8,
    },
    "svm": {"C": 0.01},
    "svm-rbf": {"C": 10.0, "gamma": 0.3 / 64, "kernel": "exact"},
    "ridge": {"alpha": 10.0},
    "knn": {"k": 5, "temperature": 0.07},
    "lda": {"shrinkage": 0.1},
    "centroid": {},
    "mlp": {"optimizer": "adamw", "lr": 1e-2, "weight_decay": 0.1, "hidden": 32}
    | {"batch_size": 64, "schedule_epochs": 8, "epochs": 8},
}


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Digits as a cache would give them: float16 made float32; columns 0, 32 and 39 are constant."""
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float16).astype(np.float32)
    return X[:700], y[:700].astype(np.int64), X[700:1200], y[700:1200].astype(np.int64)


def task(X: np.ndarray, y: np.ndarray, n_classes: int = 10, **settings: object) -> Task:
    return Task(X=as_features(X), y=y, n_classes=n_classes, device="cpu", **settings)


def fit(
    name: str, X: np.ndarray, y: np.ndarray, n_classes: int, params: Params | None = None, **settings: object
) -> Fitted:
    fitted = CLASSIFIERS[name].fit(params or MIDDLE[name], task(X, y, n_classes, **settings))
    assert fitted.converged
    assert fitted.message == ""
    return fitted


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_digits(name: str, digits: tuple[np.ndarray, ...]) -> None:
    X, y, X_new, y_new = digits
    head = fit(name, X, y, 10).head
    assert (head.predict(X_new) == y_new).mean() > (0.8 if name == "centroid" else 0.87)
    assert (head.n_parameters > 0) == (name != "knn")
    assert head.probabilistic == (name in {"logreg", "linear", "knn", "lda", "mlp"})


@pytest.mark.parametrize("name", NAMES)
def test_a_class_without_rows_is_never_predicted(name: str, digits: tuple[np.ndarray, ...]) -> None:
    X, y, X_new, y_new = digits
    kept = ~np.isin(y, [0, 4, 9])
    head = fit(name, X[kept], y[kept], 11).head
    scores = head.scores(X_new)
    assert scores.shape == (len(X_new), 11)
    assert np.isfinite(scores).all()
    assert not np.isin(scores.argmax(axis=1), [0, 4, 9, 10]).any()
    seen = ~np.isin(y_new, [0, 4, 9])
    assert (head.predict(X_new[seen]) == y_new[seen]).mean() > 0.8
    if head.probabilistic:
        assert softmax(scores)[:, [0, 4, 9, 10]].max() < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_two_classes(name: str, digits: tuple[np.ndarray, ...]) -> None:
    X, y, X_new, y_new = digits
    two, new = y >= 5, y_new >= 5
    head = fit(name, X, two.astype(np.int64), 2).head
    assert head.scores(X_new).shape == (len(X_new), 2)
    assert (head.predict(X_new) == new).mean() > (0.7 if name == "centroid" else 0.8)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "knn"])
def test_the_scale_of_a_column_means_nothing(name: str, digits: tuple[np.ndarray, ...]) -> None:
    X, y, X_new, _ = digits
    factor = np.float32(2.0) ** np.arange(-32, 32, dtype=np.float32)  # powers of two: no rounding
    plain, scaled = fit(name, X, y, 10).head, fit(name, X * factor, y, 10).head
    assert (plain.predict(X_new) == scaled.predict(X_new * factor)).mean() > 0.99


def standard(X: np.ndarray, X_new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, scale = column_statistics(as_features(X))
    return ((X - mean) / scale).astype(np.float64), ((X_new - mean) / scale).astype(np.float64)


@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_")  # NearestCentroid, of constant columns
@pytest.mark.parametrize("n_classes", [2, 10])
@pytest.mark.parametrize("n_rows", [50, 700])  # fewer rows than columns, and more
def test_scikit_learn_fits_the_same(n_rows: int, n_classes: int, digits: tuple[np.ndarray, ...]) -> None:
    X, y, X_new, _ = digits
    X, y = X[:n_rows], y[:n_rows] % n_classes
    Z, Z_new = standard(X, X_new)

    def scores(name: str) -> np.ndarray:
        return fit(name, X, y, n_classes).head.scores(X_new)

    logreg = LogisticRegression(C=0.1, tol=1e-6, max_iter=1000).fit(Z, y)
    np.testing.assert_allclose(softmax(scores("logreg")), logreg.predict_proba(Z_new), atol=2e-2)
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1).fit(Z, y)
    np.testing.assert_allclose(softmax(scores("lda")), lda.predict_proba(Z_new), atol=1e-3)
    ridge = RidgeClassifier(alpha=10.0).fit(Z, y)
    mine = scores("ridge")
    decision = mine if n_classes > 2 else (mine[:, 1] - mine[:, 0]) / 2
    np.testing.assert_allclose(decision, ridge.decision_function(Z_new), atol=1e-4)
    assert (mine.argmax(axis=1) == ridge.predict(Z_new)).all()
    centroid = NearestCentroid().fit(Z, y)
    assert (scores("centroid").argmax(axis=1) == centroid.predict(Z_new)).mean() > 0.995
    rbf = SVC(C=10.0, gamma=0.3 / 64, break_ties=n_classes > 2).fit(Z, y)
    assert (scores("svm-rbf").argmax(axis=1) == rbf.predict(Z_new)).mean() > 0.99


def test_the_linear_svm_is_linear_svc(digits: tuple[np.ndarray, ...]) -> None:
    X, y, X_new, _ = digits
    Z, Z_new = standard(X, X_new)
    for C in (1e-4, 1e-2, 0.1):
        mine = fit("svm", X, y, 10, {"C": C}).head.scores(X_new)
        # a large intercept_scaling leaves the intercept all but unpenalised, as it is here
        svc = LinearSVC(C=C, intercept_scaling=30.0, dual=False, tol=1e-6, max_iter=5000).fit(Z, y)
        expected = svc.decision_function(Z_new)
        assert np.abs(mine - expected).max() < 0.03 * np.abs(expected).max()


def test_a_probability_is_the_models_own(digits: tuple[np.ndarray, ...]) -> None:
    X, y, X_new, _ = digits
    model = LogisticRegression(C=0.1, tol=1e-8, max_iter=10_000).fit(task(X, y % 2, 2).Z.astype(np.float64), y % 2)
    head = fit("logreg", X, y % 2, 2).head
    Z_new = standard(X, X_new)[1].astype(np.float32)
    np.testing.assert_allclose(softmax(head.scores(X_new)), model.predict_proba(Z_new), atol=1e-5)
    assert (head.predict(X_new) == model.predict(Z_new)).all()


def test_many_rows_are_approximated_and_it_says_so(
    digits: tuple[np.ndarray, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y, X_new, y_new = digits
    clf = CLASSIFIERS["svm-rbf"]
    assert {c["kernel"] for chain in clf.chains(4500, 64, 5000) for c in chain} == {"exact"}
    assert {c["kernel"] for chain in clf.chains(4500, 64, 5001) for c in chain} == {"nystroem"}
    params = {"C": 10.0, "gamma": 0.3 / 64, "kernel": "nystroem", "n_landmarks": 300}
    approximate = fit("svm-rbf", X, y, 10, params)
    assert "approximated (Nystroem, 300 landmark rows)" in clf.note(params, task(X, y))
    assert clf.note(MIDDLE["svm-rbf"], task(X, y)) == ""
    exact = fit("svm-rbf", X, y, 10)
    assert (approximate.head.predict(X_new) == y_new).mean() > (exact.head.predict(X_new) == y_new).mean() - 0.03
    # with every row a landmark, the features' inner products are the centred kernel itself
    monkeypatch.setattr(margins, "_ROWS", 64)
    small = task(X[:100], y[:100])
    _, _, features, center = margins.landmark_map(small, gamma=0.3 / 64, n_landmarks=100)
    kernel = margins.rbf(small.Z, small.Z, 0.3 / 64)
    np.testing.assert_allclose((features + center) @ (features + center).T, kernel, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_search_is_the_fit(name: str, digits: tuple[np.ndarray, ...]) -> None:
    """A candidate's validation scores are those of its head, and its head is what `fit` makes of its params."""
    X, y, X_new, y_new = digits
    both = as_features(np.concatenate([X[:200], X_new[:100]]))
    labels = np.concatenate([y[:200], y_new[:100]])
    rows = np.random.default_rng(0).permutation(300)
    train = [np.sort(np.setdiff1d(rows, part)) for part in (rows[:100], rows[100:200])]
    val = [np.sort(rows[:100]), np.sort(rows[100:200])]
    folds = Folds(X=both, y=labels, n_classes=10, train=tuple(train), val=tuple(val), device="cpu")
    clf = CLASSIFIERS[name]
    chain = clf.chains(200, 64, 300)[0]
    chain = [p | {"schedule_epochs": 3} if "schedule_epochs" in p else p for p in chain]
    for i, trial in enumerate(clf.search(chain, folds)):
        for number, (fitted, scores) in enumerate(zip(trial.fitted, trial.scores, strict=True)):
            fold = folds.fold(number)
            np.testing.assert_allclose(scores, fitted.head.scores_of(fold.X_val), atol=1e-6)
            if "epochs" in trial.params:
                continue  # which are those of both folds together
            again = clf.fit(trial.params, fold.task)
            same = (again.head.scores_of(fold.X_val).argmax(axis=1) == scores.argmax(axis=1)).mean()
            assert same >= 0.97  # iterative solvers came there from the neighbouring candidate
        if i == 3:
            break


@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("n_features", [3, 64])  # as many rows as columns, and fewer
@pytest.mark.parametrize("name", NAMES)
def test_one_row_a_class(name: str, n_features: int, class_weight: str | None, digits: tuple[np.ndarray, ...]) -> None:
    X, y, X_new, _ = digits
    chosen = [int(np.flatnonzero(y == c)[0]) for c in (0, 1, 4)]
    columns = np.flatnonzero(X[chosen].std(axis=0))[:n_features]
    X, X_new, y = X[chosen][:, columns], X_new[:, columns], np.arange(3)
    folds = Folds(X=as_features(X), y=y, n_classes=3, train=(), val=(), class_weight=class_weight, device="cpu")
    clf = CLASSIFIERS[name]
    learned = 0
    for params in clf.chains(3, len(columns), 3)[0]:
        fitted = clf.fit(params | ({"epochs": 100} if "schedule_epochs" in params else {}), folds.task(np.arange(3)))
        assert fitted.converged
        assert np.isfinite(fitted.head.scores(X_new)).all()
        learned += bool((fitted.head.predict(X) == y).all())
    assert learned


@pytest.mark.parametrize("name", NAMES)
def test_views_and_weights_are_searched_and_fitted(name: str, digits: tuple[np.ndarray, ...]) -> None:
    X, y, _, _ = digits
    X, y = X[:150], np.minimum(y[:150], 4)
    val = tuple(np.arange(f, 150, 2) for f in range(2))
    X_views = viewed(X, 2, noise=0.05)
    folds = Folds(X=X_views, y=y, n_classes=5, train=val[::-1], val=val, class_weight="balanced", device="cpu")
    clf = CLASSIFIERS[name]
    chain = [p | {"schedule_epochs": 20} if "schedule_epochs" in p else p for p in clf.chains(75, 64, 150)[0]]
    best = 0.0
    for trial in clf.search(chain, folds):
        for scores, rows, fitted in zip(trial.scores, val, trial.fitted, strict=True):
            assert scores.shape == (75, 5)
            np.testing.assert_allclose(scores, averaged_scores(fitted.head, X_views.take(rows)), atol=1e-5)
            best = max(best, float((scores.argmax(axis=1) == y[rows]).mean()))
        head = clf.fit(trial.params, folds.task(np.arange(150))).head
        assert np.isfinite(head.scores(X)).all()
    assert best > (0.6 if name == "centroid" else 0.8)


def test_not_converging_is_recorded(digits: tuple[np.ndarray, ...]) -> None:
    from heads.classifiers import LogReg

    X, y, _, _ = digits
    fitted = LogReg(C=(1.0,), max_passes=3).fit({"C": 1.0}, task(X, y))
    assert not fitted.converged
    assert "stopped after" in fitted.message
    assert "\n" not in fitted.message
