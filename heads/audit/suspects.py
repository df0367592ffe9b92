"""Out-of-fold probabilities and labels in; the rows whose label is likely wrong, likeliest first, out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from heads.predictors import Doubles
from heads.standardization import Labels

#: A class that is more probable than the label by this is suggested, however sure heads are of others.
SURE = 0.5


@dataclass(frozen=True, eq=False, kw_only=True)
class Suspects:
    """Rows whose label heads that never saw them contradict, worst first.

    Attributes:
        rows: (P,) int64 places in the probabilities.
        suggested: (P,) int64 classes.
        margin: (P,) float64 in (-1, 1], the probability of the suggested class less that of the given one.
        thresholds: (n_classes,) the mean probability of each class over the rows labelled so; NaN without rows.
    """

    rows: Labels
    suggested: Labels
    margin: Doubles
    thresholds: Doubles


def suspects(probabilities: Doubles, y: Labels) -> Suspects:
    """Confident learning, and what is plainly more probable.

    A row counts as of a class where its probability reaches the mean of those labelled so; of several such classes, as
    of the most probable one. It is suspected where that is not its label (the confident joint of Northcutt, Jiang and
    Chuang 2021, arXiv:1911.00068, section 3.1), and also where a class is more probable than the label by `SURE`: where
    heads are right about nearly all rows, few wrong ones reach the mean. Rows are ranked by the normalised margin
    (section 3.2).

    Args:
        probabilities: (N, n_classes), out of fold.
        y: int64 (N,) labels.
    """
    n, n_classes = probabilities.shape
    own = probabilities[np.arange(n), y]
    counts = np.bincount(y, minlength=n_classes)
    with np.errstate(invalid="ignore"):
        thresholds = np.bincount(y, own, minlength=n_classes) / counts
    confident = probabilities >= np.where(counts > 0, thresholds, np.inf)
    counted_as = np.where(confident, probabilities, -1.0).argmax(axis=1)
    likeliest = probabilities.argmax(axis=1)
    joint = confident.any(axis=1) & (counted_as != y)
    suggested = np.where(joint, counted_as, likeliest)
    off = np.flatnonzero(joint | (probabilities[np.arange(n), likeliest] - own >= SURE))
    margin = probabilities[off, suggested[off]] - own[off]
    order = np.argsort(-margin, kind="stable")
    return Suspects(
        rows=off[order],
        suggested=suggested[off][order].astype(np.int64),
        margin=margin[order],
        thresholds=thresholds,
    )
