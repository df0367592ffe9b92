"""Class scores and true labels in; how far probabilities can be believed, and a temperature that mends them, out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.common.errors import UserError
from heads.predictors import ABSENT, Doubles, Scores
from heads.standardization import Labels

_BLOCK_VALUES = 2**20  # 8 MiB as float64
_LOG_TEMPERATURES = (math.log(1e-4), math.log(1e2))  # beside the spread of the scores


@dataclass(frozen=True, eq=False, kw_only=True)
class Reliability:
    """Rows by the probability of their predicted class, in equal-width bins (low, high] from 0 to 1.

    `confidence`, the mean of that probability, and `accuracy`, the share of rows predicted right, are float64 (n_bins,)
    and NaN where a bin is empty; `count` is int64 (n_bins,).
    """

    confidence: Doubles
    accuracy: Doubles
    count: Labels

    @property
    def ece(self) -> float:
        """The mean over rows of their bin's |accuracy - confidence| (Guo et al. 2017, arXiv:1706.04599, equation 3)."""
        gaps = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return float(gaps @ self.count / self.count.sum())


def row_blocks(scores: Scores) -> Iterator[slice]:
    """Consecutive rows of scores (N, n_classes), so few at a time that a float64 copy of them is small."""
    size = max(1, _BLOCK_VALUES // max(1, scores.shape[1]))
    for start in range(0, len(scores), size):
        yield slice(start, start + size)


def bin_of(confidence: Doubles, n_bins: int) -> Labels:
    """The bin, int64 (N,) in 0..n_bins-1, of each probability (N,): bin b holds (b / n_bins, (b + 1) / n_bins]."""
    return np.clip(np.ceil(confidence * n_bins).astype(np.int64) - 1, 0, n_bins - 1)


def binned(confidence: Doubles, correct: NDArray[np.bool_], *, n_bins: int = 15) -> Reliability:
    """Reliability from the probability of each row's predicted class (N,) and whether the prediction was right (N,)."""
    bins = bin_of(confidence, n_bins)
    count = np.bincount(bins, minlength=n_bins)
    each = np.where(count > 0, count, np.nan)
    return Reliability(
        confidence=np.bincount(bins, weights=confidence, minlength=n_bins) / each,
        accuracy=np.bincount(bins, weights=correct, minlength=n_bins) / each,
        count=count,
    )


def reliability(scores: Scores, y: Labels, *, n_bins: int = 15) -> Reliability:
    """Reliability of the softmax of scores (N, n_classes) against labels y (N,), N at least 1; works in row blocks."""
    from scipy import special

    confidence = [special.softmax(scores[rows].astype(np.float64), axis=1).max(axis=1) for rows in row_blocks(scores)]
    correct = [scores[rows].argmax(axis=1) == y[rows] for rows in row_blocks(scores)]
    return binned(np.concatenate(confidence), np.concatenate(correct), n_bins=n_bins)


def fit_temperature(scores: Scores, y: Labels, *, probabilistic: bool = False) -> float:
    """The T for which softmax(scores / T) has the lowest mean log loss (Guo et al. 2017, section 4.2), as far as N rows
    support it.

    If all rows are right the log loss falls without end as T falls, which few rows do not justify. So Laplace's rule of
    succession is applied: one more row counts as wrong, with a weight of 1 / (N + 2) of all, see `doubt`. N rows that
    are right by the same margin get the probability (N + 1) / (N + 2); with many rows T hardly changes.

    If the scores are log-probabilities already, that row only keeps T from making them surer than N rows support; it
    does not make them less sure. T is then the number nearest to 1 between the temperatures with and without it.

    T is looked for from a ten-thousandth to a hundred times the spread of the scores, which margins may have of any
    size. Dividing by any such T leaves classes without training rows (score `ABSENT`) at probability 0; rows that are
    of such a class say nothing of T and are left out. If no others are left, T is 1.

    Args:
        scores: finite logits, log-probabilities or margins (N, n_classes) of rows that the head was not fitted on.
        y: int64 (N,) in 0..n_classes-1.
        probabilistic: whether the softmax of the scores is a probability before.

    Raises:
        UserError: there are no rows, or scores and labels do not fit each other.
    """
    if scores.ndim != 2 or y.shape != (len(scores),) or not len(y):
        raise UserError(
            f"scores {scores.shape} and labels {y.shape}: a temperature takes (N, n_classes) and (N,), N > 0"
        )
    possible = of_known_class(scores, y)
    if not possible.any():
        return 1.0
    kept, codes = (scores, y) if possible.all() else (scores[possible], y[possible])
    supported = _best_temperature(kept, codes, doubt=doubt(kept, codes))
    if not probabilistic:
        return supported
    likeliest = _best_temperature(kept, codes, doubt=0.0)
    return float(np.clip(1.0, likeliest, supported))


def of_known_class(scores: Scores, y: Labels) -> NDArray[np.bool_]:
    """Whether each row's class has a score, bool (N,): it had training rows."""
    known: NDArray[np.bool_] = np.take_along_axis(scores, y[:, None], axis=1)[:, 0] > ABSENT / 2
    return known


def doubt(scores: Scores, y: Labels) -> float:
    """What one more row that is wrong, with a weight of 1 / (N + 2), adds to the mean log loss of N rows, in nats.

    The row is one of the N, drawn at random, with the strongest class but its true one as its label: the mean of true
    score less strongest other score, by N + 2. With scores / T it is this number by T. It is 0 where that mean is below
    0, so that it never speaks for surer probabilities.
    """
    total = 0.0
    for rows in row_blocks(scores):
        others = scores[rows].astype(np.float64)
        true = np.take_along_axis(others, y[rows, None], axis=1)[:, 0]
        np.put_along_axis(others, y[rows, None], ABSENT, axis=1)
        strongest = others.max(axis=1)
        total += float((true - strongest).sum(where=(strongest > ABSENT / 2) & (true > ABSENT / 2)))
    return max(0.0, total) / len(y) / (len(y) + 2)


def _best_temperature(scores: Scores, y: Labels, *, doubt: float) -> float:
    """The T of lowest mean log loss plus doubt / T: convex in 1 / T, so that a bounded search over log T finds it."""
    from scipy import optimize

    spread = float(scores.std(where=scores > ABSENT / 2, dtype=np.float64)) or 1.0
    found = optimize.minimize_scalar(
        lambda log_t: _mean_loss(scores, y, math.exp(log_t)) + doubt / math.exp(log_t),
        bounds=(math.log(spread) + _LOG_TEMPERATURES[0], math.log(spread) + _LOG_TEMPERATURES[1]),
        method="bounded",
        options={"xatol": 1e-5},
    )
    return math.exp(float(found.x))


def _mean_loss(scores: NDArray[Any], y: Labels, temperature: float) -> float:
    """Mean of -log p of the true class, not clipped, so that the search sees its slope everywhere."""
    from scipy import special

    total = 0.0
    for rows in row_blocks(scores):
        scaled = scores[rows].astype(np.float64) / temperature
        true = np.take_along_axis(scaled, y[rows, None], axis=1)[:, 0]
        total += float((special.logsumexp(scaled, axis=1) - true).sum())
    return total / len(y)
