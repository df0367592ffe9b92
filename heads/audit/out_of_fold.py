"""Labelled features in; each row's class probabilities by a logistic head that never saw its picture, out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from featcache.common.errors import UserError
from heads.classifiers import CLASSIFIERS
from heads.evidence.metrics import log_loss, softmax
from heads.features import Features
from heads.fitting import Folds
from heads.folds import stratified
from heads.predictors import Doubles, Scores
from heads.standardization import Labels

N_FOLDS = 10

_MANY_ROWS = 5000  # from here on half as many folds


@dataclass(frozen=True, eq=False, kw_only=True)
class OutOfFold:
    """What heads say of rows that they never saw.

    Attributes:
        rows: (M,) int64, the labelled rows of classes that have two pictures at least.
        probabilities: (M, n_classes) float64.
        C: the inverse strength of the penalty, chosen by the log-loss of these probabilities.
        n_folds: how many heads there were.
        notes: sentences for the user.
    """

    rows: Labels
    probabilities: Doubles
    C: float
    n_folds: int
    notes: tuple[str, ...]


def out_of_fold(
    X: Features,
    y: Labels,
    picture: Labels,
    *,
    n_classes: int,
    seed: int = 0,
    tell: Callable[[str], None] = lambda text: None,
) -> OutOfFold:
    """Cross-validated probabilities; the copies of a picture are never in both parts, lest they vouch for each other.

    One row of each picture is folded, stratified by label, and every row has the probabilities of its picture. The
    penalty is the one with the lowest log-loss, which, unlike accuracy, asks for probabilities that can be believed.

    Args:
        X: (N, D).
        y: int64 (N,), -1 where unlabelled.
        picture: int64 (N,), for each row the first row that shows the same, as `duplicates.pictures` tells it.
        n_classes: number of classes.
        seed: of the folds.
        tell: called with each penalty that took more than a second.

    Raises:
        UserError: fewer than two classes have two pictures each.
    """
    labelled = np.flatnonzero(y >= 0)
    _, first = np.unique(picture[labelled], return_index=True)
    shown = labelled[np.sort(first)]  # one labelled row of each picture
    counts = np.bincount(y[shown], minlength=n_classes)
    shown = shown[counts[y[shown]] >= 2]
    if np.count_nonzero(counts >= 2) < 2:
        raise UserError("fewer than two classes have two labelled pictures: labels can't be checked against each other")
    n_folds = min(N_FOLDS if len(shown) < _MANY_ROWS else N_FOLDS // 2, int(counts.max()))
    C, scores, notes = _scored(X.take(shown), y[shown], n_folds, n_classes=n_classes, seed=seed, tell=tell)
    probabilities = softmax(scores)
    place = np.full(len(y), -1, np.int64)
    place[picture[shown]] = np.arange(len(shown))
    rows = labelled[place[picture[labelled]] >= 0]
    return OutOfFold(rows=rows, probabilities=probabilities[place[picture[rows]]], C=C, n_folds=n_folds, notes=notes)


def _scored(
    X: Features, y: Labels, n_folds: int, *, n_classes: int, seed: int, tell: Callable[[str], None]
) -> tuple[float, Scores, tuple[str, ...]]:
    """The C of the lowest log-loss, and its scores (N, n_classes) of rows out of the fold that they are in."""
    train, val, notes = stratified(y, n_folds, seed=seed)
    folds = Folds(X=X, y=y, n_classes=n_classes, train=train, val=val, seed=seed, device="cpu")
    logreg = CLASSIFIERS["logreg"]
    (chain,) = logreg.chains(min(map(len, train)), X.shape[1], len(y))
    best, failed, lowest, worse = None, "", np.inf, 0
    order = np.argsort(np.concatenate(val))
    clock = time.perf_counter()
    for trial in logreg.search(chain, folds):
        scores = np.concatenate(trial.scores)[order]
        loss = log_loss(scores, y)
        if (seconds := time.perf_counter() - clock) > 1:
            tell(f"  C {trial.params['C']:.3g}, {n_folds} folds: log-loss {loss:.4f} ({seconds:.1f} s)")
        if loss < lowest:
            best, lowest, worse = (float(trial.params["C"]), scores), loss, 0
            failed = next((fitted.message for fitted in trial.fitted if not fitted.converged), "")
        else:
            worse += 1
        if trial.saturated or worse == 2:
            break
        clock = time.perf_counter()
    if best is None:
        raise UserError("the features hold values that are not finite: embed again, with --storage float32")
    return *best, (*notes, f"did not converge: {failed}") if failed else notes
