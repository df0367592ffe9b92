"""How good scores are: class scores and true labels in, accuracies, intervals and calibration out."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from heads.predictors import Doubles, Scores
from heads.standardization import Labels

_LOG_FLOOR = math.log(np.finfo(np.float64).eps)  # probabilities are clipped there, as in scikit-learn's log_loss


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Shares are in 0..1, log_loss in nats. None: top5 up to 5 classes, log_loss and ece without probabilities."""

    accuracy: float
    accuracy_ci95: tuple[float, float]
    top5: float | None
    balanced_accuracy: float
    macro_f1: float
    log_loss: float | None
    ece: float | None

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON holds them: the interval is a list."""
        return {**asdict(self), "accuracy_ci95": list(self.accuracy_ci95)}


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
    from scipy import special

    true = np.take_along_axis(special.log_softmax(scores.astype(np.float64), axis=1), y[:, None], axis=1)
    return float(-np.maximum(true, _LOG_FLOOR).mean())


def calibration_error(scores: Scores, y: Labels, *, n_bins: int = 15) -> float:
    """Expected calibration error over equal-width bins of the top probability (Guo et al. 2017, arXiv:1706.04599)."""
    probabilities = softmax(scores)
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == y
    bins = np.clip(np.ceil(confidence * n_bins).astype(np.int64) - 1, 0, n_bins - 1)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=n_bins)
    return float(np.abs(gaps).sum() / len(y))


def evaluate(scores: Scores, y: Labels, n_classes: int, probabilistic: bool) -> Metrics:
    """All metrics of scores (N, n_classes) against labels y (N,) in 0..n_classes-1, N at least 1.

    Balanced accuracy is the mean recall of the classes in y, macro f1 the mean over classes in y or predicted, as in
    scikit-learn. Equal scores are taken in class order, by top5 as by the prediction.
    """
    assert scores.shape == (len(y), n_classes), (scores.shape, y.shape, n_classes)
    assert len(y) > 0
    pred = scores.argmax(axis=1)
    correct = int((pred == y).sum())
    each = per_class(y, pred, n_classes)
    seen = each.support > 0
    said = np.bincount(pred, minlength=n_classes) > 0
    top5 = None
    if n_classes > 5:
        top5 = float((np.argsort(-scores, axis=1, kind="stable")[:, :5] == y[:, None]).any(axis=1).mean())
    return Metrics(
        accuracy=correct / len(y),
        accuracy_ci95=wilson(correct, len(y)),
        top5=top5,
        balanced_accuracy=float(each.recall[seen].mean()),
        macro_f1=float(each.f1[seen | said].mean()),
        log_loss=log_loss(scores, y) if probabilistic else None,
        ece=calibration_error(scores, y) if probabilistic else None,
    )
