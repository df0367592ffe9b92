"""Ways to validate as data: rows and a recipe in; which rows are fitted on and which are scored, fold by fold, out."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.common.errors import UsageError
from featcache.tables.subset import carve
from heads.features import Features
from heads.fitting import Folds, Task
from heads.recipe import Recipe
from heads.standardization import Labels

if TYPE_CHECKING:
    from heads.rows import Rows


@dataclass(frozen=True, eq=False, kw_only=True)
class Validation:
    """How the candidates of a head are compared, without a look at test.

    `kind` is holdout (one fold), cv (several, which score every row once) or loo; of loo `folds` names no folds, and
    every row is scored by a fit on all others. `notes` are sentences for the user.
    """

    kind: str
    folds: Folds
    notes: tuple[str, ...] = ()

    @property
    def scored(self) -> tuple[Labels, ...]:
        """The rows that are scored, int64, part by part: those of each fold, or all."""
        return self.folds.val or (np.arange(len(self.folds.y)),)

    @property
    def smallest(self) -> int:
        """The rows to fit on in the smallest fold."""
        return min((len(rows) for rows in self.folds.train), default=len(self.folds.y) - 1)

    def whole(self) -> Task:
        """All rows, those to fit on and those to score."""
        return self.folds.task(np.arange(len(self.folds.y)))

    def to_json(self) -> dict[str, Any]:
        """Kind and number of folds, and what the standard errors of the scores are of."""
        n_folds = None if self.kind == "loo" else len(self.folds)
        return {"kind": self.kind, "folds": n_folds, "error": "over folds" if self.kind == "cv" else "binomial"}

    def __str__(self) -> str:
        n_rows = sum(len(rows) for rows in self.scored)
        if self.kind == "holdout":
            return f"{n_rows:,} validation rows"
        return f"{n_rows:,} rows, {'each left out in turn' if self.kind == 'loo' else f'in {len(self.folds)} folds'}"


def validation_of(rows: Rows, recipe: Recipe) -> Validation:
    """What a recipe asks for on the train and val rows of a set; hold-out takes its val rows."""
    n_train, dev = len(rows.train), rows.dev
    holdout = (np.arange(n_train), np.arange(n_train, len(dev)))
    return validation(dev.features, dev.labels, recipe, n_classes=len(rows.class_names), holdout=holdout)


def validation(
    X: Features, y: Labels, recipe: Recipe, *, n_classes: int, holdout: tuple[Labels, Labels] | None = None
) -> Validation:
    """What a recipe asks for on images X (N, D), y int64 (N,).

    `holdout` names the rows to fit on and those to score where one part is held out; without it such a part is carved,
    stratified, `recipe.val_fraction` of each class; a class with one row is then fitted on and not scored.

    Raises UsageError where each class has fewer rows than there are folds.
    """
    train: tuple[Labels, ...]
    val: tuple[Labels, ...]
    notes: tuple[str, ...] = ()
    if recipe.cv is None:
        fitted_on, scored = holdout or carve(y, fraction=recipe.val_fraction, seed=recipe.seed)
        train, val = (fitted_on,), (scored,)
    elif recipe.cv == "loo":
        train, val = (), ()
    else:
        train, val, notes = stratified(y, recipe.cv, seed=recipe.seed)
    kind = "holdout" if recipe.cv is None else "loo" if recipe.cv == "loo" else "cv"
    folds = Folds(
        X=X,
        y=y,
        n_classes=n_classes,
        train=train,
        val=val,
        class_weight=recipe.class_weight,
        seed=recipe.seed,
        device=recipe.device,
    )
    return Validation(kind=kind, folds=folds, notes=notes)


def stratified(y: Labels, n_folds: int, *, seed: int) -> tuple[tuple[Labels, ...], tuple[Labels, ...], tuple[str, ...]]:
    """Rows to fit on and rows to score of each fold, ascending, and notes; every row is scored in one fold.

    scikit-learn's StratifiedKFold. A class with fewer rows than folds is not scored in all of them, and one with a
    single row is scored by a head that never saw its class. Raises UsageError where all classes are that small.
    """
    from sklearn.model_selection import StratifiedKFold

    counts = np.bincount(y)
    if counts.max() < n_folds:
        raise UsageError(
            f"{n_folds} folds: no class has more than {counts.max()} rows: ask for that many folds at most"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        splitter = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
        parts = [(train.astype(np.int64), val.astype(np.int64)) for train, val in splitter.split(y, y)]
    few = int(((counts > 0) & (counts < n_folds)).sum())
    alone = int((counts == 1).sum())
    notes: tuple[str, ...] = ()
    if few:
        classes = "1 class has" if few == 1 else f"{few:,} classes have"
        unseen = f"; the single row of {alone:,} of them is scored without its class being known" if alone else ""
        notes = (f"{classes} fewer rows than the {n_folds} folds, and no rows to score in some{unseen}",)
    return tuple(train for train, _ in parts), tuple(val for _, val in parts), notes
