"""Validation chooses, and nothing else: what is scored, what is chosen by which rule, and what is told of it."""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import StratifiedKFold

from featcache.errors import UsageError, UserError
from featcache.subset import carve
from heads.classifiers import CLASSIFIERS, NAMES, LogReg
from heads.closed_form import ClosedForm
from heads.evidence.metrics import log_loss
from heads.features import ArrayFeatures
from heads.fitting import Classifier
from heads.folds import Validation, stratified, validation
from heads.linear_probe import Member
from heads.neighbor_search import Neighbors
from heads.nested import nested_estimate
from heads.predictors import ABSENT
from heads.probes import Probe
from heads.recipe import Recipe
from heads.ridge import ridge_left_out, ridge_solver
from heads.selection import Selection, fit_unvalidated, select
from heads.standardization import Floats, Labels, column_statistics

N_TRAIN = 420


@dataclasses.dataclass(frozen=True)
class Digits:
    """600 digits, the first N_TRAIN to fit on where a part is held out."""

    X: Floats
    y: Labels
    train: Labels = dataclasses.field(default_factory=lambda: np.arange(N_TRAIN))
    val: Labels = dataclasses.field(default_factory=lambda: np.arange(N_TRAIN, 600))

    def validation(self, recipe: Recipe) -> Validation:
        return validation(ArrayFeatures(self.X), self.y, recipe, n_classes=10, holdout=(self.train, self.val))

    def select(self, clf: str, **settings: object) -> Selection:
        recipe = Recipe(clf=clf, device="cpu", **settings)  # type: ignore[arg-type]
        return select(recipe, self.validation(recipe))


@pytest.fixture(scope="module")
def digits() -> Digits:
    X, y = load_digits(return_X_y=True)
    X, y = X.astype(np.float32)[:600], y.astype(np.int64)[:600]
    order = np.concatenate(carve(y, fraction=0.3, seed=1))
    assert len(order) == 600
    return Digits(X[order], y[order])


def use(monkeypatch: pytest.MonkeyPatch, classifier: Classifier) -> None:
    monkeypatch.setitem(CLASSIFIERS, "mine", classifier)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounded(ClosedForm):
    """A grid that nothing continues."""

    def beyond(self, best, name, up):  # type: ignore[no-untyped-def]
        return []


class Stuck(Bounded):
    """Nothing it fits converges."""

    def _fitted(self, *arguments):  # type: ignore[no-untyped-def]
        return dataclasses.replace(super()._fitted(*arguments), converged=False, message="it did not move")


def ridge(*alphas: float, kind: type[ClosedForm] = Bounded) -> ClosedForm:
    return kind(solver=ridge_solver, left_out=ridge_left_out, name="alpha", grid=alphas)


SMALL_PROBE = Probe(
    members=tuple(Member(optimizer="adamw", lr=lr, weight_decay=0.0) for lr in (1e-4, 1e-2, 1e-1)),
    epochs=5,
    min_steps=0,
)


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
        assert best["params"] == done.params
        y_val = digits.y[digits.val]
        assert (done.val_rows == digits.val).all()
        assert (done.val_scores.argmax(axis=1) == y_val).mean() == best["val_accuracy"]
        assert best["val_error"] == pytest.approx(np.sqrt(best["val_accuracy"] * (1 - best["val_accuracy"]) / 180))
        if best["val_log_loss"] is not None:
            assert log_loss(done.val_scores, y_val) == pytest.approx(best["val_log_loss"], rel=1e-5)


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
