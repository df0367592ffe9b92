"""`--clf logreg`: where its path ends."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special
from sklearn.metrics import d2_log_loss_score

from heads.classifiers import CLASSIFIERS, LogReg
from heads.features import ArrayFeatures
from heads.fitting import Folds
from heads.folds import validation
from heads.recipe import Recipe
from heads.selection import select

PATH = tuple(float(C) for C in 10.0 ** np.arange(-4, 4))


@pytest.fixture(scope="module")
def separable() -> Folds:
    """80 rows in 300 dimensions, three classes that hardly differ: any 60 of them can be told apart."""
    rng = np.random.default_rng(0)
    y = np.arange(80) % 3
    X = (rng.standard_normal((80, 300)) + 0.1 * y[:, None]).astype(np.float32)
    rows = np.arange(80)
    folds = [(rows[rows % 4 != k], rows[rows % 4 == k]) for k in range(2)]
    train, val = zip(*folds, strict=True)
    return Folds(X=ArrayFeatures(X), y=y, n_classes=3, train=train, val=val)


def test_the_path_is_saturated_where_all_folds_are_explained(separable: Folds) -> None:
    """scikit-learn's d2_log_loss_score is the referee."""
    trials = list(LogReg(C=PATH).search([{"C": C} for C in PATH], separable))
    saturated = [trial.saturated for trial in trials]
    assert saturated == sorted(saturated)
    assert not saturated[0]
    for trial in trials:
        explained = []
        for rows, fitted in zip(separable.train, trial.fitted, strict=True):
            p = special.softmax(fitted.head.scores(separable.X.take(rows).load()).astype(np.float64), axis=1)
            explained.append(d2_log_loss_score(separable.y[rows], p))
        assert (min(explained) > 0.999) == trial.saturated


@pytest.mark.parametrize("grid", [PATH, (1e4, 1e5)])
def test_the_search_does_not_go_beyond(
    separable: Folds, grid: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weak end is no edge then; the strong end still is one."""
    monkeypatch.setitem(CLASSIFIERS, "mine", LogReg(C=grid))
    recipe = Recipe(clf="mine", device="cpu")
    holdout = (separable.train[0], separable.val[0])
    done = select(recipe, validation(separable.X, separable.y, recipe, n_classes=3, holdout=holdout))
    tried = [c for c in done.candidates if c["tried"]]
    saturated = [c["params"]["C"] for c in tried if c.get("saturated")]
    assert max(c["params"]["C"] for c in tried) in saturated
    if grid == PATH:
        assert len(saturated) == 1
        assert saturated[0] < PATH[-1]
    else:
        assert min(c["params"]["C"] for c in tried) < grid[0]
