"""A temperature from few rows does no harm, says what it was fitted on, and whether that can be judged."""

from __future__ import annotations

import numpy as np
import pytest
from selecting import Digits, use

from heads import calibrating
from heads.evidence.calibration import fit_temperature
from heads.evidence.metrics import log_loss
from heads.features import ArrayFeatures
from heads.fitting import Classifier
from heads.folds import validation
from heads.linear_probe import Member
from heads.probes import Probe
from heads.recipe import Recipe
from heads.selection import Selection, select
from heads.standardization import Floats, Labels


def drawn(*counts: int, rng: np.random.Generator) -> tuple[Floats, Labels]:
    """Rows of normal classes, so far apart that a good head has about 97 % right."""
    y = np.repeat(np.arange(len(counts)), counts)
    return (rng.normal(size=(len(y), 20)) + 4.0 * np.eye(20)[y]).astype(np.float32), y.astype(np.int64)


def selected(clf: str, X: Floats, y: Labels, **settings: object) -> Selection:
    recipe = Recipe(clf=clf, device="cpu", **settings)  # type: ignore[arg-type]
    return select(recipe, validation(ArrayFeatures(X), y, recipe, n_classes=int(y.max()) + 1))


def probe(hidden: int | None) -> Classifier:
    members = tuple(Member(optimizer="adamw", lr=lr, weight_decay=0.0, hidden=hidden) for lr in (1e-3, 1e-2))
    return Probe(members=members, epochs=10, min_steps=0)


@pytest.mark.parametrize("clf", ["logreg", "svm", "ridge", "lda", "centroid", "linear", "mlp"])
def test_six_validation_rows_that_are_all_right_do_no_harm(clf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if clf in ("linear", "mlp"):
        use(monkeypatch, probe(16 if clf == "mlp" else None))
        clf = "mine"
    all_right = 0
    for seed in range(3):
        rng = np.random.default_rng(seed)
        X, y = drawn(20, 20, 20, rng=rng)
        X_test, y_test = drawn(100, 100, 100, rng=rng)
        done = selected(clf, X, y, calibrate=True, seed=seed)
        assert done.calibration is not None
        assert done.uncalibrated is not None
        assert (len(done.val_rows), done.calibration.n_rows, done.calibration.n_folds) == (6, 60, 5)
        all_right += bool((done.val_scores.argmax(axis=1) == y[done.val_rows]).all())
        before = log_loss(done.uncalibrated[0].scores(X_test), y_test)
        assert log_loss(done.head.scores(X_test), y_test) < 1.25 * before
    assert all_right > 0


@pytest.mark.parametrize("seed", range(3))
def test_few_validation_rows_do_not_choose_certain_neighbors(seed: int) -> None:
    """The temperature of knn, and its k, decide how sure it is."""
    rng = np.random.default_rng(seed)
    X, y = drawn(20, 20, 20, rng=rng)
    X_test, y_test = drawn(100, 100, 100, rng=rng)
    done = selected("knn", X, y, seed=seed)
    assert (done.val_scores.argmax(axis=1) == y[done.val_rows]).all()
    assert np.exp(done.val_scores.max(axis=1)).mean() < 0.99
    assert log_loss(done.head.scores(X_test), y_test) < 0.3


def test_a_calibration_that_cannot_be_judged_is_told() -> None:
    X, y = drawn(5, 5, rng=np.random.default_rng(0))
    done = selected("ridge", X, y, calibrate=True)
    assert done.calibration is not None
    assert not done.calibration.judged
    assert "each scored by one of 5 heads that did not see it, since there are only 2 validation rows" in done.notes[-2]
    assert done.notes[-1].startswith("the calibration cannot be judged: the temperature is fitted on 10 rows, ")
    X, y = drawn(20, 20, 20, rng=np.random.default_rng(1))
    done = selected("ridge", X, y, calibrate=True)
    assert done.calibration is not None
    assert done.calibration.judged
    assert "judged" not in " ".join(done.notes)


def test_enough_validation_rows_are_taken_alone(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrating, "ENOUGH_ROWS", 180)
    for cv, n_rows in ((None, 180), (3, 600), ("loo", 600)):
        done = digits.select("ridge", cv=cv, calibrate=True)
        assert done.calibration is not None
        assert done.uncalibrated is not None
        assert (done.calibration.n_rows, done.calibration.n_folds) == (n_rows, None)
        scores, y = done.uncalibrated[1], digits.y[done.val_rows]
        assert done.temperature == pytest.approx(fit_temperature(scores, y), rel=1e-4)
        assert done.calibration.n_wrong == (scores.argmax(axis=1) != y).sum()
        assert "temperature" not in " ".join(done.notes)


def test_a_class_with_a_single_row_stays_in_every_part_that_is_fitted() -> None:
    X, y = drawn(8, 1, rng=np.random.default_rng(0))
    done = selected("lda", X, y, calibrate=True)
    assert done.calibration is not None
    assert done.calibration.n_rows == 8


def test_probes_are_fitted_in_folds_for_the_epochs_that_were_chosen(
    digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each fold would choose its own epoch on the rows that it scores."""
    use(monkeypatch, probe(None))
    fitted = []
    fit = Probe.fit
    monkeypatch.setattr(Probe, "fit", lambda self, params, task: fitted.append(params) or fit(self, params, task))
    done = Digits(digits.X[:60], digits.y[:60], np.arange(50), np.arange(50, 60)).select("mine", calibrate=True)
    assert fitted == [done.params] * 6  # five folds and the refit
