"""What was seen of each row in; 95 % intervals of metrics that have no formula for one out, by seeded resampling."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from heads.evidence.calibration import bin_of, binned
from heads.predictors import Doubles
from heads.standardization import Labels

Interval = tuple[float, float]
RESAMPLES = 1000
_SEED = 0
_CHUNK_VALUES = 2**21  # numbers drawn at once
_PRIOR_ROWS = 2.0  # added right, and as many wrong (Agresti and Coull 1998, The American Statistician 52)
_ENDS = (0.025, 0.975)


def confusion_intervals(y: Labels, pred: Labels, n_classes: int) -> tuple[Interval, Interval]:
    """Intervals of balanced accuracy and of macro F1, from labels (N,) and predictions (N,).

    Resampling rows draws the occupied cells of the confusion matrix from a multinomial, so these are drawn. Two things
    are done to the plain percentile bootstrap. Two right and two wrong rows, spread evenly over the classes in y, are
    added to the cells drawn from: few errors, or none, would else give too short an interval, or one of no width. And
    both ends are moved against the bias that resampling adds to the metric (Efron and Tibshirani 1993, section 10.6),
    twice, since the metric itself has it once. Then both are moved out to the metric, where it is not between them.

    In simulation (120 to 1,000 sets a case, 2 to 100 classes, 50 to 1,000 rows, recalls of 0.7 to 0.98) balanced
    accuracy was covered in 93 to 96 % and macro F1 in 93 to 99 %; without the additions it was 62 to 96 % for both.
    """
    weights, true, said = _smoothed_cells(y, pred, n_classes)
    rng = np.random.default_rng(_SEED)
    parts = [
        _balanced_and_f1(rng.multinomial(len(y), weights / weights.sum(), size=size), true, said, n_classes)
        for size in _chunks(max(len(weights), n_classes))
    ]
    drawn = np.concatenate(parts, axis=1)
    centers = _balanced_and_f1(weights[None], true, said, n_classes)[:, 0]
    metrics = _balanced_and_f1(np.ones((1, len(y))), y, pred, n_classes)[:, 0]
    ends = np.quantile(drawn, _ENDS, axis=1) - 2 * (drawn.mean(axis=1) - centers)
    low = np.clip(np.minimum(ends[0], metrics), 0.0, 1.0)
    high = np.clip(np.maximum(ends[1], metrics), 0.0, 1.0)
    return (float(low[0]), float(high[0])), (float(low[1]), float(high[1]))


def mean_interval(values: Doubles, *, most: float) -> Interval:
    """Interval of the mean of values (N,), in 0..most, by the bootstrap-t (Efron and Tibshirani 1993, section 12.5).

    Log losses are skewed: a few mistakes make most of the sum. In simulation (250 to 500 sets a case, 50 or 153 rows)
    these intervals covered in 90 to 98 %, percentiles in 79 to 96 %; at 1,000 rows both had 94 to 96 %. Where all
    values are equal the interval has no width.
    """
    rng = np.random.default_rng(_SEED)
    n, center, deviation = len(values), float(values.mean()), float(values.std())
    if deviation == 0.0:
        return center, center
    off = values - center
    ratios = []
    for size in _chunks(n):
        drawn = off[rng.integers(0, n, (size, n), dtype=np.int32)]
        # a resample of one value over and over has no deviation: its ratio is as good as infinite
        ratios.append(drawn.mean(axis=1) / np.maximum(drawn.std(axis=1), 1e-9 * deviation))
    low, high = np.quantile(np.concatenate(ratios), _ENDS) * deviation
    return float(np.clip(center - high, 0.0, center)), float(np.clip(center - low, center, most))


def calibration_interval(confidence: Doubles, correct: NDArray[np.bool_], *, n_bins: int = 15) -> Interval:
    """Interval of the expected calibration error, from the top probability (N,) and whether it was right (N,).

    The error is a sum of absolute values, so that noise adds to it: it is above 0 for a perfectly calibrated head, and
    the percentiles of resamples lie higher still. Hence the upper end is that percentile, which errs upwards, the lower
    end is the percentile less twice the bias of resampling, and it is 0 where the error is no larger than 97.5 % of
    those a calibrated head would show, its rows being right with the probability it states (consistency resampling,
    Broecker and Smith 2007, Weather and Forecasting 22). In simulation the error of the population was covered in 89 to
    100 % (40 to 250 sets a case, 50 to 10,000 rows), that of a calibrated head in 96 to 98 %, by percentiles never.
    """
    rng = np.random.default_rng(_SEED)
    n, bins, gaps = len(confidence), bin_of(confidence, n_bins), correct - confidence
    resampled, calibrated = [], []
    for size in _chunks(n):
        rows = rng.integers(0, n, (size, n), dtype=np.int32)
        resampled.append(_errors(bins[rows], gaps[rows], n_bins))
        right = rng.random((size, n), dtype=np.float32) < confidence
        calibrated.append(_errors(np.broadcast_to(bins, right.shape), right - confidence, n_bins))
    metric = binned(confidence, correct, n_bins=n_bins).ece
    drawn = np.concatenate(resampled)
    low, high = np.quantile(drawn, _ENDS)
    low -= 2 * (drawn.mean() - metric)
    if metric <= np.quantile(np.concatenate(calibrated), _ENDS[1]):
        low = 0.0
    return float(np.clip(low, 0.0, metric)), float(np.clip(high, metric, 1.0))


def _chunks(n_values: int) -> Iterator[int]:
    """How many resamples of n_values numbers to draw at once, until all are drawn."""
    size = max(1, _CHUNK_VALUES // n_values)
    for start in range(0, RESAMPLES, size):
        yield min(size, RESAMPLES - start)


def _smoothed_cells(y: Labels, pred: Labels, n_classes: int) -> tuple[Doubles, Labels, Labels]:
    """Weight, true class and predicted class of each cell that is occupied once the prior rows are added."""
    seen = np.unique(y)
    others = np.roll(seen, -1) if len(seen) > 1 else (seen + 1) % n_classes
    share = np.full(len(seen), _PRIOR_ROWS / len(seen))
    codes = np.concatenate([y * n_classes + pred, seen * n_classes + seen, seen * n_classes + others])
    cells, cell_of = np.unique(codes, return_inverse=True)
    weights = np.bincount(cell_of, weights=np.concatenate([np.ones(len(y)), share, share]))
    return weights.astype(np.float64), (cells // n_classes).astype(np.int64), (cells % n_classes).astype(np.int64)


def _balanced_and_f1(counts: NDArray[np.number], true: Labels, said: Labels, n_classes: int) -> Doubles:
    """Balanced accuracy and macro F1, (2, R), of R sets of counts (R, K) of cells with these classes (K,)."""
    from scipy.sparse import csr_array

    cells, ones = np.arange(len(true)), np.ones(len(true))
    shape = (len(true), n_classes)
    support = counts @ csr_array((ones, (cells, true)), shape=shape)
    predicted = counts @ csr_array((ones, (cells, said)), shape=shape)
    right = counts @ csr_array(((true == said).astype(np.float64), (cells, true)), shape=shape)
    recall = np.divide(right, support, out=np.zeros_like(right), where=support > 0)
    either = support + predicted
    f1 = np.divide(2 * right, either, out=np.zeros_like(right), where=either > 0)
    return np.stack([recall.sum(axis=1) / (support > 0).sum(axis=1), f1.sum(axis=1) / (either > 0).sum(axis=1)])


def _errors(bins: Labels, gaps: Doubles, n_bins: int) -> Doubles:
    """Expected calibration error (R,) of R sets of rows: their bins (R, N) and correct less confidence (R, N)."""
    n_sets, n = bins.shape
    places = bins + n_bins * np.arange(n_sets)[:, None]
    sums = np.bincount(places.ravel(), weights=gaps.ravel(), minlength=n_sets * n_bins)
    return np.abs(sums.reshape(n_sets, n_bins)).sum(axis=1) / n
