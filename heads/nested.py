"""A recipe and its rows in; how well the whole procedure does on rows that its choice never saw out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from heads.evidence.metrics import wilson
from heads.fitting import averaged_scores
from heads.folds import Validation, stratified, validation
from heads.recipe import Recipe
from heads.selection import select


def nested_estimate(recipe: Recipe, whole: Validation) -> dict[str, Any]:
    """Select anew on the inner rows of each of `recipe.nested` folds, and score the fold's outer rows.

    Hyper-parameters are chosen as the recipe says, held-out rows being carved from the inner ones. The validation score
    of what was chosen is the highest of many and so too high; this estimate is of rows that took no part in the choice
    (Varma and Simon 2006, BMC Bioinformatics 7:91).

    Args:
        recipe: with `nested`.
        whole: all rows but test; its folds are not used.

    Returns:
        folds; accuracy on the outer rows of all folds together, and accuracy_ci95, Wilson's; params, chosen in each.
    """
    assert recipe.nested is not None
    X, y, n_classes = whole.folds.X, whole.folds.y, whole.folds.n_classes
    inner = replace(recipe, refit=True, calibrate=False)
    right, params = 0, []
    for train, val in zip(*stratified(y, recipe.nested, seed=recipe.seed)[:2], strict=True):
        done = select(inner, validation(X.take(train), y[train], inner, n_classes=n_classes))
        params.append(done.params)
        predicted = averaged_scores(done.head, X.take(val)).argmax(axis=1)
        right += int(np.count_nonzero(predicted == y[val]))
    return {
        "folds": recipe.nested,
        "accuracy": right / len(y),
        "accuracy_ci95": list(wilson(right, len(y))),
        "params": params,
    }
