"""How good scores are: class scores and true labels in, accuracies, intervals and calibration out."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from heads.evidence.bootstrap import Interval, calibration_interval, confusion_intervals, mean_interval
from heads.evidence.calibration import binned, reliability, row_blocks
from heads.predictors import Doubles, Scores
from heads.standardization import Labels

_LOG_FLOOR = math.log(np.finfo(np.float64).eps)  # probabilities are clipped there, as in scikit-learn's log_loss


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Shares are in 0..1, log_loss in nats; each `_ci95` is the (low, high) of a 95 % interval.

    None: top5 up to 5 classes, log_loss and ece without probabilities, intervals other than the accuracy's where they
    were not asked for or the metric itself is None.
    """

    accuracy: float
    accuracy_ci95: Interval
    top5: float | None
    balanced_accuracy: float
    balanced_accuracy_ci95: Interval | None
    macro_f1: float
    macro_f1_ci95: Interval | None
    log_loss: float | None
    log_loss_ci95: Interval | None
    ece: float | None
    ece_ci95: Interval | None

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON holds them: intervals are lists."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


@dataclass(frozen=True, eq=False, kw_only=True)
class PerClass:
    """precision, recall and f1, float64 (n_classes,), 0 where undefined, and support, the true rows, int64."""

    precision: Doubles
    recall: Doubles
    f1: Doubles
    support: Labels


def softmax(scores: Scores) -> Doubles:
    """Probabilities, float64, from logits or log-probabilities (N, n_classes)."""
    from scipy import special

    return special.softmax(scores.astype(np.float64), axis=1)


def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927, JASA 22); (0, 1) where n is 0."""
    from scipy.stats import binomtest

    if n == 0:
        return 0.0, 1.0
    interval = binomtest(correct, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def confusion(y: Labels, pred: Labels, n_classes: int) -> Labels:
    """Counts int64 (n_classes, n_classes): rows are true classes, columns predicted ones."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(y, pred, labels=np.arange(n_classes)).astype(np.int64)


def per_class(y: Labels, pred: Labels, n_classes: int) -> PerClass:
    """Precision, recall, f1 and support of every class, from labels (N,) and predictions (N,)."""
    from sklearn.metrics import precision_recall_fscore_support

    labels = np.arange(n_classes)
    precision, recall, f1, support = precision_recall_fscore_support(y, pred, labels=labels, zero_division=0.0)
    return PerClass(precision=precision, recall=recall, f1=f1, support=support.astype(np.int64))


def log_loss(scores: Scores, y: Labels) -> float:
    """Mean of -log p of the true class, in nats; p is the softmax of the scores, at least float64's epsilon."""
    return float(np.concatenate([_logs(scores[rows], y[rows])[0] for rows in row_blocks(scores)]).mean())


def calibration_error(scores: Scores, y: Labels, *, n_bins: int = 15) -> float:
    """Expected calibration error over equal-width bins of the top probability (Guo et al. 2017, arXiv:1706.04599)."""
    return reliability(scores, y, n_bins=n_bins).ece


class Tally:
    """Blocks of scores in, one after the other; the metrics of all of them out. Keeps a few numbers a row, no scores.

    `probabilistic` says whether the softmax of the scores is a probability.
    """

    def __init__(self, n_classes: int, probabilistic: bool) -> None:
        self.n_classes, self.probabilistic = n_classes, probabilistic
        self._y: list[Labels] = []
        self._pred: list[Labels] = []
        self._losses: list[Doubles] = []
        self._confidence: list[Doubles] = []
        self._among_5 = 0

    def add(self, scores: Scores, y: Labels) -> None:
        """Count rows: scores float32 or float64 (n, n_classes), y int64 (n,) in 0..n_classes-1."""
        assert scores.shape == (len(y), self.n_classes), (scores.shape, y.shape, self.n_classes)
        for rows in row_blocks(scores):
            block, true = scores[rows], y[rows]
            self._y.append(true.copy())  # a view would keep the caller's array alive
            self._pred.append(block.argmax(axis=1))
            if self.n_classes > 5:
                own = np.take_along_axis(block, true[:, None], axis=1)
                earlier = np.arange(self.n_classes) < true[:, None]
                before = ((block > own) | ((block == own) & earlier)).sum(axis=1)
                self._among_5 += int((before < 5).sum())
            if self.probabilistic:
                losses, confidence = _logs(block, true)
                self._losses.append(losses)
                self._confidence.append(confidence)

    def metrics(self, *, intervals: bool = True) -> Metrics:
        """All metrics of the rows so far, of which there is at least one.

        Balanced accuracy is the mean recall of the classes in y, macro f1 the mean over classes in y or predicted, as
        in scikit-learn. Equal scores are taken in class order, by top5 as by the prediction. Without `intervals` only
        the accuracy has one; the others take 1,000 resamples each (`heads.evidence.bootstrap`), drawn alike every time.
        """
        y, pred = np.concatenate(self._y), np.concatenate(self._pred)
        right = pred == y
        n, correct = len(y), int(right.sum())
        assert n > 0
        each = per_class(y, pred, self.n_classes)
        seen = each.support > 0
        said = np.bincount(pred, minlength=self.n_classes) > 0
        balanced_ci95 = f1_ci95 = loss_ci95 = ece_ci95 = None
        if intervals:
            balanced_ci95, f1_ci95 = confusion_intervals(y, pred, self.n_classes)
        loss = ece = None
        if self.probabilistic:
            losses, confidence = np.concatenate(self._losses), np.concatenate(self._confidence)
            loss, ece = float(losses.mean()), binned(confidence, right).ece
            if intervals:
                loss_ci95 = mean_interval(losses, most=-_LOG_FLOOR)
                ece_ci95 = calibration_interval(confidence, right)
        return Metrics(
            accuracy=correct / n,
            accuracy_ci95=wilson(correct, n),
            top5=self._among_5 / n if self.n_classes > 5 else None,
            balanced_accuracy=float(each.recall[seen].mean()),
            balanced_accuracy_ci95=balanced_ci95,
            macro_f1=float(each.f1[seen | said].mean()),
            macro_f1_ci95=f1_ci95,
            log_loss=loss,
            log_loss_ci95=loss_ci95,
            ece=ece,
            ece_ci95=ece_ci95,
        )


def evaluate(scores: Scores, y: Labels, n_classes: int, probabilistic: bool, *, intervals: bool = True) -> Metrics:
    """The metrics (`Tally.metrics`) of scores (N, n_classes) against labels y (N,) in 0..n_classes-1, N at least 1."""
    tally = Tally(n_classes, probabilistic)
    tally.add(scores, y)
    return tally.metrics(intervals=intervals)


def _logs(scores: Scores, y: Labels) -> tuple[Doubles, Doubles]:
    """-log p of the true class (n,), p at least float64's epsilon, and the largest p (n,)."""
    from scipy import special

    logs = special.log_softmax(scores.astype(np.float64), axis=1)
    true = np.take_along_axis(logs, y[:, None], axis=1)[:, 0]
    return -np.maximum(true, _LOG_FLOOR), np.exp(logs.max(axis=1))
