"""Scores and labels of the folds' validation rows in; what candidates are ranked by, and its standard error, out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from heads.evidence.calibration import doubt
from heads.evidence.metrics import log_loss
from heads.predictors import Doubles, Scores
from heads.standardization import Labels


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """How one candidate did on all validation rows together.

    Attributes:
        accuracy, balanced_accuracy: shares of the rows of all folds pooled.
        log_loss: in nats, None where the scores are no log-probabilities.
        score: what candidates are chosen by, one of the two shares.
        error: standard error of ``score``: over the folds (their standard deviation by the root of their number) where
            there are several, else binomial.
        noise: the binomial one in either case.
        doubt: what is added to the log loss where scores tie, in nats; see `judge`.
    """

    accuracy: float
    balanced_accuracy: float
    log_loss: float | None
    score: float
    error: float
    noise: float
    doubt: float = 0.0

    @property
    def rank(self) -> tuple[float, float]:
        """What is to be highest."""
        return self.score, -((self.log_loss or 0.0) + self.doubt)


def judge(
    scores: Sequence[Scores],
    labels: Sequence[Labels],
    *,
    probabilistic: bool,
    balanced: bool = False,
    cautious: bool = False,
) -> Judgement | None:
    """Judge the scores (n, n_classes) of each fold by its labels (n,); None where a score is not finite.

    `cautious`: where scores tie, the log loss by which they are ranked counts one more row, which is wrong
    (`calibration.doubt`), so that of candidates that are all right the surest does not win on few rows.
    """
    if not all(np.isfinite(part).all() for part in scores):
        return None
    n_classes = scores[0].shape[1]
    rows = np.stack([np.bincount(y, minlength=n_classes) for y in labels])  # (folds, classes)
    right = np.stack(
        [np.bincount(y[part.argmax(axis=1) == y], minlength=n_classes) for part, y in zip(scores, labels, strict=True)]
    )
    n_rows = rows.sum()
    loss = None
    if probabilistic:
        loss = float(sum(len(y) * log_loss(part, y) for part, y in zip(scores, labels, strict=True) if len(y)) / n_rows)
    accuracy, recall = float(right.sum() / n_rows), _mean_recall(right.sum(axis=0), rows.sum(axis=0))
    noise = (
        _balanced_noise(right.sum(axis=0), rows.sum(axis=0))
        if balanced
        else (accuracy * (1 - accuracy) / n_rows) ** 0.5
    )
    error = noise
    if len(scores) > 1:
        each = [
            _mean_recall(r, n) if balanced else r.sum() / n.sum() for r, n in zip(right, rows, strict=True) if n.sum()
        ]
        error = float(np.std(each, ddof=1) / len(each) ** 0.5)
    return Judgement(
        accuracy=accuracy,
        balanced_accuracy=recall,
        log_loss=loss,
        score=recall if balanced else accuracy,
        error=error,
        noise=float(noise),
        doubt=doubt(np.concatenate(scores), np.concatenate(labels)) if cautious else 0.0,
    )


def _mean_recall(right: Labels, rows: Labels) -> float:
    seen = rows > 0
    return float((right[seen] / rows[seen]).mean())


def _balanced_noise(right: Labels, rows: Labels) -> float:
    """The standard error of a mean of recalls, each of them binomial."""
    seen = rows > 0
    recalls: Doubles = right[seen] / rows[seen]
    return float(np.sqrt((recalls * (1 - recalls) / rows[seen]).sum()) / seen.sum())
