"""Digits to select heads on, and classifiers with grids of the tests' own."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.datasets import load_digits

from featcache.tables.subset import carve
from heads.classifiers import CLASSIFIERS
from heads.closed_form import ClosedForm
from heads.features import ArrayFeatures
from heads.fitting import Classifier
from heads.folds import Validation, validation
from heads.linear_probe import Member
from heads.probes import Probe
from heads.recipe import Recipe
from heads.ridge import ridge_left_out, ridge_solver
from heads.selection import Selection, select
from heads.standardization import Floats, Labels

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


def use(monkeypatch: pytest.MonkeyPatch, classifier: Classifier) -> None:
    monkeypatch.setitem(CLASSIFIERS, "mine", classifier)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounded(ClosedForm):
    """A grid that nothing continues."""

    def beyond(self, best, name, up):  # type: ignore[no-untyped-def]
        return []


def ridge(*alphas: float, kind: type[ClosedForm] = Bounded) -> ClosedForm:
    return kind(solver=ridge_solver, left_out=ridge_left_out, name="alpha", grid=alphas)


SMALL_PROBE = Probe(
    members=tuple(Member(optimizer="adamw", lr=lr, weight_decay=0.0) for lr in (1e-4, 1e-2, 1e-1)),
    epochs=5,
    min_steps=0,
)


def some_digits() -> Digits:
    X, y = load_digits(return_X_y=True)
    X, y = X.astype(np.float32)[:600], y.astype(np.int64)[:600]
    order = np.concatenate(carve(y, fraction=0.3, seed=1))
    assert len(order) == 600
    return Digits(X[order], y[order])
