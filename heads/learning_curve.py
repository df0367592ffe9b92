"""Training rows, fewer and fewer, in; the test accuracy of a head fitted on each number of them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featcache.common.errors import UsageError, UserError
from featcache.tables.subset import carve
from heads.evidence.metrics import wilson
from heads.folds import Validation, validation
from heads.head_run import score_blocks
from heads.predictors import Head
from heads.recipe import Recipe
from heads.rows import Rows
from heads.selection import fit_unvalidated, select
from heads.source import Source
from heads.standardization import Labels
from heads.summary import spread_of

NOTE_UNVALIDATED = (
    "with one row a class there is nothing to validate on: of the candidates, from strong to weak regularisation, the "
    "one a third of the way is fitted"
)
NOTE_OWN = "hyper-parameters are chosen on the set's own validation rows, which no head is fitted on"


@dataclass(frozen=True, kw_only=True)
class Size:
    """So many training rows: a share of each class, or a number of each class.

    Raises:
        UsageError: no share in (0, 1], or no number of at least 1.
    """

    fraction: float | None = None
    shots: int | None = None

    def __post_init__(self) -> None:
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise UsageError(f"--fractions {self.fraction:g}: expected numbers above 0 and at most 1")
        if self.shots is not None and self.shots < 1:
            raise UsageError(f"--shots {self.shots}: expected whole numbers of at least 1")

    def of(self, n_rows: int) -> int:
        """How many rows of a class that has so many; a class keeps at least one."""
        return self.shots if self.shots is not None else max(1, round((self.fraction or 1.0) * n_rows))

    def __str__(self) -> str:
        return f"{self.shots} a class" if self.shots is not None else f"{self.fraction:g}"


@dataclass(frozen=True, kw_only=True)
class CurvePiece:
    """One point of a curve: what is fitted on how many of which rows. ``recipe.seed`` draws them."""

    source: Source
    recipe: Recipe
    size: Size


def training_rows(rows: Rows) -> Labels:
    """The rows of ``rows.dev`` that a curve draws from: train, and validation where it was carved from it."""
    return np.arange(len(rows.train) if rows.own_validation else len(rows.dev))


def nested_subset(y: Labels, size: Size, *, seed: int, class_names: Sequence[str]) -> Labels:
    """Row numbers of a stratified subset of rows with labels y (N,), ascending.

    A seed's subset of one size lies in its subsets of all larger ones. Raises UserError naming a class that has fewer
    rows than are asked for.
    """
    rng = np.random.default_rng(seed)
    kept = []
    for label in range(len(class_names)):
        own = rng.permutation(np.flatnonzero(y == label))
        count = size.of(len(own))
        if count > len(own):
            mend = f"ask for at most {len(own)}, or leave it out with --classes"
            raise UserError(f"--shots {size.shots}: class {class_names[label]!r} has {len(own)} training rows; {mend}")
        kept.append(own[:count])
    return np.sort(np.concatenate(kept)).astype(np.int64)


def check_sizes(rows: Rows, sizes: Sequence[Size]) -> None:
    """Refuse, before anything is fitted, what a class cannot give. Raises UserError naming it."""
    for size in sizes:
        nested_subset(rows.dev.labels[training_rows(rows)], size, seed=0, class_names=rows.class_names)


def curve_notes(rows: Rows, points: Sequence[dict[str, Any]]) -> list[str]:
    """What was decided for the user."""
    notes = [NOTE_OWN] if rows.own_validation else []
    return notes if all(point["validated"] for point in points) else [*notes, NOTE_UNVALIDATED]


def curve_point(piece: CurvePiece) -> dict[str, Any]:
    """Fit one point of a curve: fraction or shots, seed, n_train, params, validated, test accuracy and right test rows.

    The whole selection is done on these rows alone. Where validation is carved, it is carved from them and the head is
    refitted on all of them; a set's own validation rows only choose.
    """
    rows, recipe = piece.source.rows(), piece.recipe
    drawn = training_rows(rows)
    subset = drawn[nested_subset(rows.dev.labels[drawn], piece.size, seed=recipe.seed, class_names=rows.class_names)]
    head, params, validated = _fitted(rows, subset, recipe)
    right = 0
    for block, scores in score_blocks(head, rows.test.features, len(rows.class_names)):
        right += int(np.count_nonzero(scores.argmax(axis=1) == rows.test.labels[block]))
    return {
        "fraction": piece.size.fraction,
        "shots": piece.size.shots,
        "seed": recipe.seed,
        "n_train": len(subset),
        "params": params,
        "validated": validated,
        "test_accuracy": right / len(rows.test),
        "test_right": right,
    }


def _fitted(rows: Rows, subset: Labels, recipe: Recipe) -> tuple[Head, dict[str, Any], bool]:
    whole = _validation(rows, subset, recipe)
    if whole is None:
        alone = replace(recipe, cv=None)
        X, y = rows.dev.features.take(subset), rows.dev.labels[subset]
        head, params = fit_unvalidated(alone, validation(X, y, alone, n_classes=len(rows.class_names)))
        return head, params, False
    done = select(replace(recipe, refit=not rows.own_validation or recipe.cv is not None), whole)
    return done.head, done.params, True


def _validation(rows: Rows, subset: Labels, recipe: Recipe) -> Validation | None:
    """How to validate on a subset of the rows; None where no class has two rows, nor the set rows for that."""
    dev, n_classes = rows.dev, len(rows.class_names)
    if rows.own_validation and recipe.cv is None:
        both = np.concatenate([subset, np.arange(len(rows.train), len(dev))])
        holdout = (np.arange(len(subset)), np.arange(len(subset), len(both)))
        return validation(dev.features.take(both), dev.labels[both], recipe, n_classes=n_classes, holdout=holdout)
    y = dev.labels[subset]
    most = int(np.bincount(y).max())
    if most < 2:
        return None
    if isinstance(recipe.cv, int):
        recipe = replace(recipe, cv=min(recipe.cv, most))
    holdout = carve(y, fraction=recipe.val_fraction, seed=recipe.seed)
    return validation(dev.features.take(subset), y, recipe, n_classes=n_classes, holdout=holdout)


def summarised(points: Sequence[dict[str, Any]], n_test: int) -> list[dict[str, Any]]:
    """The points of each size together, by ascending number of rows.

    accuracy holds mean, sd (None for one seed), min and max over seeds: how much the draw of the rows matters.
    accuracy_ci95 is Wilson's interval of the mean over test images: how much those matter.
    """
    sizes: dict[tuple[float | None, int | None], list[dict[str, Any]]] = {}
    for point in points:
        sizes.setdefault((point["fraction"], point["shots"]), []).append(point)
    told = []
    for (fraction, shots), each in sizes.items():
        spread = spread_of([point["test_accuracy"] for point in each])
        told.append(
            {
                "fraction": fraction,
                "shots": shots,
                "n_train": each[0]["n_train"],
                "accuracy": spread,
                "accuracy_ci95": list(wilson(round(spread["mean"] * n_test), n_test)),
                "points": each,
            }
        )
    return sorted(told, key=lambda size: size["n_train"])
