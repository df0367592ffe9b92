"""Labels and out-of-fold probabilities in; pairs of classes that are nearly one, and classes with few rows, out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from heads.evidence.confusions import most_confused
from heads.evidence.metrics import wilson
from heads.predictors import Doubles
from heads.standardization import Labels

#: Two classes whose rows are told apart no better than this, halfway from a coin to certainty, are nearly one.
NEARLY_ONE = 0.75
#: A class with less than this share of the largest class's training rows is named.
FEW = 0.1

_PAIRS = 200  # most confused ones that are looked at
_LEAST_ROWS = 5  # of each class


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two classes, ``a`` < ``b``, that are told apart in a share ``accuracy`` of their rows, each class counting alike.

    Attributes:
        interval: of 95 % (Wilson), as of so many independent rows.
        n_rows: of both.
        examples: ids of rows of each taken for the other.
    """

    a: int
    b: int
    accuracy: float
    interval: tuple[float, float]
    n_rows: int
    examples: tuple[str, ...]


def nearly_one(probabilities: Doubles, y: Labels, ids: Sequence[str]) -> list[Pair]:
    """The pairs of classes that a head which never saw the rows can hardly tell apart, the closest first.

    A row of either class counts as told apart where its own class is the more probable of the two, whatever a third
    class's probability.

    Args:
        probabilities: (N, n_classes), out of fold.
        y: int64 (N,) labels.
        ids: of the rows.
    """
    n_classes = probabilities.shape[1]
    scores = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    confused = most_confused(y, probabilities.argmax(axis=1), ids, n_classes, scores=scores, limit=_PAIRS)
    examples: dict[tuple[int, int], tuple[str, ...]] = {}
    for each in confused:
        pair = (min(each.true, each.predicted), max(each.true, each.predicted))
        examples[pair] = (*examples.get(pair, ()), *each.examples)
    found = []
    for (a, b), of_pair in examples.items():
        recalls, counts = [], []
        for own, other in ((a, b), (b, a)):
            mine = probabilities[y == own]
            counts.append(len(mine))
            recalls.append(float((mine[:, own] > mine[:, other]).mean()))
        accuracy, n_rows = sum(recalls) / 2, sum(counts)
        if min(counts) >= _LEAST_ROWS and accuracy <= NEARLY_ONE:
            interval = wilson(round(accuracy * n_rows), n_rows)
            found.append(Pair(a=a, b=b, accuracy=accuracy, interval=interval, n_rows=n_rows, examples=of_pair))
    return sorted(found, key=lambda pair: (pair.accuracy, pair.a, pair.b))


def few_rows(y: Labels, n_classes: int) -> list[tuple[int, int]]:
    """Classes with less than a tenth of the largest one's rows, and how many they have; the fewest first."""
    counts = np.bincount(y[y >= 0], minlength=n_classes)
    few = np.flatnonzero(counts < FEW * counts.max())
    return [(int(label), int(counts[label])) for label in few[np.argsort(counts[few], kind="stable")]]
