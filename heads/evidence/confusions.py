"""True and predicted classes of rows in; the pairs of classes that are confused most often, with examples, out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heads.predictors import Doubles, Scores
from heads.standardization import Labels


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """`count` rows of class `true` were predicted as `predicted`, `share` (0..1) of that class's rows.

    `examples` are ids of some of them.
    """

    true: int
    predicted: int
    count: int
    share: float
    examples: tuple[str, ...]


def most_confused(
    y: Labels,
    pred: Labels,
    ids: Sequence[str] | NDArray[np.str_],
    n_classes: int,
    *,
    scores: Scores | None = None,
    limit: int = 10,
    n_examples: int = 3,
) -> list[Confusion]:
    """The most frequent mistakes first; equally frequent ones by true class, then by predicted class.

    Args:
        y, pred: true and predicted classes, int64 (N,) in 0..n_classes-1.
        ids: of the rows (N,).
        n_classes: number of classes.
        scores: (N, n_classes). With them the examples are the rows with the highest probability (softmax) of the class
            predicted, most confident first; without them the first rows.
        limit: of the pairs.
        n_examples: of the ids of each pair.
    """
    assert len(y) == len(pred) == len(ids), (len(y), len(pred), len(ids))
    wrong = np.flatnonzero(y != pred)
    codes, counts = np.unique(y[wrong] * n_classes + pred[wrong], return_counts=True)
    support = np.bincount(y, minlength=n_classes)
    found = []
    for place in np.argsort(-counts, kind="stable")[:limit].tolist():
        true, predicted = divmod(int(codes[place]), n_classes)
        rows = wrong[(y[wrong] == true) & (pred[wrong] == predicted)]
        if scores is not None:
            rows = rows[np.argsort(-_log_odds(scores[rows], predicted), kind="stable")]
        count = int(counts[place])
        examples = tuple(str(ids[row]) for row in rows[:n_examples].tolist())
        share = count / int(support[true])
        found.append(Confusion(true=true, predicted=predicted, count=count, share=share, examples=examples))
    return found


def _log_odds(scores: Scores, c: int) -> Doubles:
    """The log-odds (n,) of a class, log p / (1 - p); unlike p it still tells apart rows whose p rounds to 1."""
    from scipy import special

    exact = scores.astype(np.float64)
    return exact[:, c] - special.logsumexp(np.delete(exact, c, axis=1), axis=1)
