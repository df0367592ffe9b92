"""How good scores are: class scores and true labels in, accuracies, intervals and calibration out."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heads.predictors import Doubles, Scores
from heads.standardization import Labels

_Z95 = 1.959963984540054  # the 97.5 % point of the normal distribution
_LOG_FLOOR = math.log(np.finfo(np.float64).eps)  # probabilities are clipped there, as in scikit-learn's log_loss


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Shares are in 0..1, log_loss in nats. None: top5 with at most 5 classes, log_loss and ece without probabilities."""

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
    return np.exp(_log_softmax(scores))


def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927, JASA 22); (0, 1) where n is 0."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = correct / n, _Z95**2
    center = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


def confusion(y: Labels, pred: Labels, n_classes: int) -> Labels:
    """Counts int64 (n_classes, n_classes): rows are true classes, columns predicted ones."""
    cells = np.bincount(y * n_classes + pred, minlength=n_classes * n_classes)
    return cells.reshape(n_classes, n_classes).astype(np.int64)


def per_class(y: Labels, pred: Labels, n_classes: int) -> PerClass:
    """Precision, recall, f1 and support of every class, from labels (N,) and predictions (N,)."""
    matrix = confusion(y, pred, n_classes)
    hits, true, said = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    return PerClass(
        precision=_share(hits, said), recall=_share(hits, true), f1=_share(2 * hits, true + said), support=true
    )


def log_loss(scores: Scores, y: Labels) -> float:
    """Mean of -log p of the true class, in nats; p is the softmax of the scores, at least float64's epsilon."""
    true = np.take_along_axis(_log_softmax(scores), y[:, None], axis=1)
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
    assert scores.shape == (len(y), n_classes) != (0, n_classes), (scores.shape, y.shape, n_classes)
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


def _log_softmax(scores: Scores) -> Doubles:
    shifted = scores.astype(np.float64) - scores.max(axis=1, keepdims=True)
    out: Doubles = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return out


def _share(part: NDArray[Any], whole: NDArray[Any]) -> Doubles:
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)
