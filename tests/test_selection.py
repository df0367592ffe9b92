"""Validation chooses, and nothing else: what is carved, what is chosen, what is told of it."""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest
from sklearn.datasets import load_digits

from featcache.errors import UsageError, UserError
from heads import selection as module
from heads.classifiers import CLASSIFIERS, NAMES, LogReg, Neighbors, Probe
from heads.closed_form import ClosedForm, ridge_solver
from heads.fitting import Classifier
from heads.linear_probe import Member
from heads.metrics import log_loss
from heads.selection import Selection, carve_validation, select
from heads.standardization import column_statistics


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    X, y = load_digits(return_X_y=True)
    X, y = X.astype(np.float32)[:600], y.astype(np.int64)[:600]
    train, val = carve_validation(y, fraction=0.3, seed=1)
    return X[train], y[train], X[val], y[val]


def use(monkeypatch: pytest.MonkeyPatch, classifier: Classifier) -> None:
    monkeypatch.setitem(CLASSIFIERS, "mine", classifier)


def ridge(*alphas: float) -> ClosedForm:
    return ClosedForm(ridge_solver, [{"alpha": a} for a in alphas], probabilistic=False, natural_ends={})


SMALL_PROBE = Probe(
    members=tuple(Member(optimizer="adamw", lr=lr, weight_decay=0.0) for lr in (1e-4, 1e-2, 1e-1)),
    epochs=5,
    min_steps=0,
)


def test_carving_is_a_stratified_partition() -> None:
    y = np.repeat(np.arange(4), [2, 9, 100, 1000])
    np.random.default_rng(0).shuffle(y)
    train, val = carve_validation(y, fraction=0.1, seed=3)
    assert (np.sort(np.concatenate([train, val])) == np.arange(len(y))).all()
    assert np.bincount(y[val]).tolist() == [1, 1, 10, 100]
    assert (np.diff(train) > 0).all()
    assert (np.diff(val) > 0).all()
    assert (carve_validation(y, fraction=0.1, seed=3)[1] == val).all()
    assert not np.array_equal(carve_validation(y, fraction=0.1, seed=4)[1], val)
    assert np.bincount(y[carve_validation(y, fraction=0.99, seed=0)[0]]).min() == 1


def test_a_class_with_one_row_is_named() -> None:
    with pytest.raises(UserError, match=r"class 'bee' has one training row.*--classes"):
        carve_validation(np.array([0, 0, 1]), class_names=["ant", "bee"])
    for fraction in (0.0, 1.0, -1.0):
        with pytest.raises(UsageError, match="validation fraction"):
            carve_validation(np.array([0, 0]), fraction=fraction)


@pytest.mark.parametrize("name", ["logreg", "svm", "ridge", "knn", "lda", "centroid", "svm-rbf"])
def test_validation_rows_only_choose(name: str, rows: tuple[np.ndarray, ...]) -> None:
    """The head without refit depends on validation rows through the choice alone: the same params, the same bits."""
    X, y, X_val, y_val = rows
    first = select(name, X, y, X_val, y_val, n_classes=10, refit=False)
    assert first.head is first.val_head
    assert not first.refit
    other = select(name, X, y, X_val[::2] * 0.5, y_val[::2], n_classes=10, refit=False)
    task = module.Task(X=X, y=y, n_classes=10)
    mean, _ = column_statistics(X)
    for one in (first, other):
        again = CLASSIFIERS[name].fit(one.params, task).head
        assert (again.predict(X) == one.head.predict(X)).mean() > 0.99
        if "mean" in again.LAYOUT:
            assert (getattr(one.head, "mean") == mean).all()  # noqa: B009


def test_the_refit_learns_from_both(rows: tuple[np.ndarray, ...]) -> None:
    X, y, X_val, y_val = rows
    done = select("ridge", X, y, X_val, y_val, n_classes=10)
    both = np.concatenate([X, X_val]), np.concatenate([y, y_val])
    task = module.Task(X=both[0], y=both[1], n_classes=10)
    expected = CLASSIFIERS["ridge"].fit(done.params, task).head
    assert (done.head.scores(X) == expected.scores(X)).all()
    assert (getattr(done.head, "mean") == column_statistics(both[0])[0]).all()  # noqa: B009
    assert (getattr(done.val_head, "mean") == column_statistics(X)[0]).all()  # noqa: B009


def test_the_head_of_the_best_candidate_is_taken(rows: tuple[np.ndarray, ...]) -> None:
    X, y, X_val, y_val = rows
    for name in ("knn", "lda", "ridge"):
        done = select(name, X, y, X_val, y_val, n_classes=10)
        tried = [c for c in done.candidates if c["tried"]]
        best = max(tried, key=lambda c: (c["val_accuracy"], -(c["val_log_loss"] or 0.0)))
        assert best["params"] == done.params
        scores = done.val_head.scores(X_val)
        assert (scores.argmax(axis=1) == y_val).mean() == best["val_accuracy"]
        if best["val_log_loss"] is not None:
            assert log_loss(scores, y_val) == pytest.approx(best["val_log_loss"], rel=1e-5)


def test_ties_go_to_the_stronger_regularisation(rows: tuple[np.ndarray, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, ridge(10.0, 9.999, 9.998))
    done = select("mine", *rows, n_classes=10)
    assert len({c["val_accuracy"] for c in done.candidates}) == 1
    assert done.params == {"alpha": 10.0}


def test_an_edge_is_told(rows: tuple[np.ndarray, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, ridge(1e9, 1e8, 10.0))
    done = select("mine", *rows, n_classes=10)
    assert done.at_grid_edge == ["alpha"]
    assert done.notes == ["at the edge of its grid: alpha=10, of 10 to 1e+09; a better value may lie beyond"]
    use(monkeypatch, ridge(1e9, 10.0, 1e-9))
    assert select("mine", *rows, n_classes=10).params == {"alpha": 10.0}
    assert select("mine", *rows, n_classes=10).at_grid_edge == []
    use(monkeypatch, ridge(10.0))
    assert select("mine", *rows, n_classes=10).at_grid_edge == []
    use(monkeypatch, Neighbors(k=(400, 1), temperature=(10.0,)))
    done = select("mine", *rows, n_classes=10)
    assert done.params["k"] == 1
    assert done.at_grid_edge == []  # there is nothing below one neighbour


def test_a_chain_that_only_gets_worse_is_left(rows: tuple[np.ndarray, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Worsening(LogReg):
        def search(self, chain, task, X_val, y_val):  # type: ignore[no-untyped-def]
            for i, trial in enumerate(super().search(chain, task, X_val, y_val)):
                wrong = np.arange(len(y_val)) < 40 * i
                yield dataclasses.replace(trial, scores=np.where(wrong[:, None], -trial.scores, trial.scores))

    use(monkeypatch, Worsening(C=(0.01, 0.1, 1.0, 10.0, 100.0)))
    done = select("mine", *rows, n_classes=10)
    assert [c["tried"] for c in done.candidates] == [True, True, True, False, False]
    assert [c["params"]["C"] for c in done.candidates] == [0.01, 0.1, 1.0, 10.0, 100.0]
    assert done.candidates[-1]["val_accuracy"] is None
    assert "3 of 5 candidates" in done.how


def test_what_did_not_converge_is_told(rows: tuple[np.ndarray, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, LogReg(C=(1.0,), max_iter=3))
    done = select("mine", *rows, n_classes=10)
    assert not done.converged
    assert [note.partition(":")[0] for note in done.notes] == [
        "did not converge in the search",
        "did not converge in the refit",
    ]
    assert len(select("mine", *rows, n_classes=10, refit=False).notes) == 1


def test_epochs_are_chosen_and_the_history_kept(rows: tuple[np.ndarray, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, SMALL_PROBE)
    seen: list[dict[str, object]] = []
    done = select("mine", *rows, n_classes=10, device="cpu", report=seen.append)
    assert seen == done.candidates
    searched = [h for h in done.history if h["phase"] == "search"]
    refitted = [h for h in done.history if h["phase"] == "refit"]
    assert len(searched) == done.params["schedule_epochs"] == 5
    assert len(refitted) == done.params["epochs"]
    assert max(h["val_accuracy"] for h in searched) == searched[done.params["epochs"] - 1]["val_accuracy"]
    assert set(done.history[0]) == {
        *("epoch", "phase", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "seconds")
    }
    assert done.epoch_seconds is not None


def test_a_candidate_that_diverges_is_not_chosen(rows: tuple[np.ndarray, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    members = tuple(Member(optimizer="sgd", lr=lr, weight_decay=0.0, hidden=8) for lr in (1e30, 1e-2))
    use(monkeypatch, dataclasses.replace(SMALL_PROBE, members=members))
    done = select("mine", *rows, n_classes=10, device="cpu")
    assert done.params["lr"] == 1e-2
    assert done.candidates[0]["val_accuracy"] is None
    assert not done.candidates[0]["converged"]
    assert done.converged
    use(monkeypatch, dataclasses.replace(SMALL_PROBE, members=members[:1]))
    with pytest.raises(UserError, match="no candidate gives finite scores"):
        select("mine", *rows, n_classes=10, device="cpu")


def test_the_request_is_checked(rows: tuple[np.ndarray, ...]) -> None:
    X, y, X_val, y_val = rows
    with pytest.raises(UsageError, match=r"unknown classifier 'logrek': did you mean logreg"):
        select("logrek", *rows, n_classes=10)
    with pytest.raises(UserError, match="fitting needs at least 2"):
        select("ridge", X, 0 * y, X_val, y_val, n_classes=10)
    with pytest.raises(UserError, match="not finite"):
        select("ridge", np.full_like(X, np.inf), y, X_val, y_val, n_classes=10)
    with pytest.raises(UserError, match="do not fit"):
        select("ridge", X, y[1:], X_val, y_val, n_classes=10)


def test_no_test_rows_can_enter() -> None:
    assert not [p for f in (select, carve_validation) for p in inspect.signature(f).parameters if "test" in p]
    assert {f.name for f in dataclasses.fields(Selection)} >= {"head", "val_head", "params", "at_grid_edge", "notes"}
    assert len(NAMES) == 9
