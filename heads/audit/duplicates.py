"""Rows of a cache, and their images where these are at hand, in; which rows are the same image, exactly or nearly, out.

Exact duplicates have the same bytes. Near duplicates are closer in features than images of this set are to their
nearest neighbours, and where both images are at hand their pixels must agree as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heads.audit.audited_rows import AuditedRows
from heads.audit.directions import Directions, spread
from heads.audit.images_at_hand import ImagesAtHand
from heads.audit.similar_pairs import similar_pairs
from heads.row_notes import as_keys
from heads.standardization import Floats, Labels

#: Pairs of images whose `pixel_distance` is at most this are the same picture. JPEG at quality 30 moves photographs by
#: 0.03; different photographs of ants and bees are 0.5 apart or more.
SAME_PIXELS = 0.15

_CALIBRATED_ON = 2048  # rows whose nearest neighbours tell what is usual
_CHECKED = 2.0  # deviations nearer than usual from which on pixels are compared
_MOST_CHECKED = 20_000  # pairs whose pixels are compared, the most similar ones
_LEAST_COSINE, _MOST_COSINE = 0.5, 0.9999


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What cosine is unusual in a set.

    The logarithms of the distances of different images to their nearest neighbours have a median and a deviation
    (1.4826 times the median absolute one, which a few copies hardly move). From the cosine ``checked`` on, two
    deviations nearer than the median, pixels decide. ``alone`` is for pairs without pixels: were the logarithms
    distributed normally, half an image of the whole set would be as near to another by chance.
    """

    median: float
    deviation: float
    checked: float
    alone: float


@dataclass(frozen=True, eq=False, kw_only=True)
class NearPairs:
    """Pairs of rows that are alike and no exact duplicates, most similar first.

    Attributes:
        first, second: (P,) int64 rows.
        cosine: (P,) float32 of the features about their mean.
        pixels: (P,) float32 `pixel_distance`; NaN where an image is not at hand.
        same: (P,) whether they are the same picture: by pixels, or where there are none by features alone.
        n_more: further pairs nearer than usual that were too many to keep, or to compare the pixels of.
    """

    first: Labels
    second: Labels
    cosine: Floats
    pixels: Floats
    same: NDArray[np.bool_]
    n_more: int = 0

    def __len__(self) -> int:
        return len(self.first)


def copies(rows: AuditedRows) -> Labels:
    """For each row (N,) the first row with the same bytes, itself where there is none before."""
    _, first, place = np.unique(as_keys(rows.content), return_index=True, return_inverse=True)
    return first[place].astype(np.int64)


def calibrated(X: Directions) -> Calibration:
    """Learn from different images X (N, D), N > 2, what cosine is unusual."""
    from scipy import stats

    asked = spread(_CALIBRATED_ON, len(X))
    cosine = _nearest_other(X, asked)
    distance = np.log(np.sqrt(np.maximum(2 - 2 * cosine.astype(np.float64), 1e-7)))
    median = float(np.median(distance))
    deviation = float(max(1.4826 * np.median(np.abs(distance - median)), 1e-3))

    def cosine_at(deviations: float) -> float:
        found = 1 - np.exp(2 * (median - deviations * deviation)) / 2
        return float(np.clip(found, _LEAST_COSINE, _MOST_COSINE))

    by_chance = float(stats.norm.isf(0.5 / len(X)))
    return Calibration(
        median=median, deviation=deviation, checked=cosine_at(_CHECKED), alone=cosine_at(max(by_chance, _CHECKED))
    )


def near_pairs(rows: AuditedRows, X: Directions, calibration: Calibration, images: ImagesAtHand | None) -> NearPairs:
    """The pairs of different bytes that are near each other.

    Args:
        rows: all of them.
        X: their directions (N, D).
        calibration: what is unusual.
        images: None where they are not at hand; pairs then need the cosine ``alone``.
    """
    different = np.unique(copies(rows))
    found = similar_pairs(X.take(different), calibration.alone if images is None else calibration.checked)
    first, second, cosine = different[found.first], different[found.second], found.cosine
    pixels, n_more = np.full(len(first), np.nan, np.float32), found.n_found - len(found)
    if images is not None:
        n = min(len(first), _MOST_CHECKED)
        n_more = found.n_found - n
        pixels[:n] = images.distances(first[:n].tolist(), second[:n].tolist())
    unknown = np.isnan(pixels)
    kept = (pixels <= SAME_PIXELS) | (cosine >= calibration.alone)
    same = np.where(unknown, cosine >= calibration.alone, pixels <= SAME_PIXELS)
    return NearPairs(
        first=first[kept],
        second=second[kept],
        cosine=cosine[kept],
        pixels=pixels[kept],
        same=same[kept],
        n_more=n_more,
    )


def pictures(rows: AuditedRows, near: NearPairs) -> Labels:
    """The picture of each row (N,), as the first row that shows it: copies, exact and near, are one picture."""
    from scipy import sparse
    from scipy.sparse import csgraph

    n, copy_of = len(rows), copies(rows)
    a = np.concatenate([np.arange(n), near.first[near.same]])
    b = np.concatenate([copy_of, near.second[near.same]])
    _, group = csgraph.connected_components(sparse.coo_matrix((np.ones(len(a), bool), (a, b)), shape=(n, n)), False)
    _, first, place = np.unique(group, return_index=True, return_inverse=True)
    return first[place].astype(np.int64)


def _nearest_other(X: Directions, asked: Labels) -> Floats:
    """The cosine of each row asked for with the nearest of all others, float32 (n,)."""
    queries = X.take(asked).load()
    best = np.full(len(asked), -1.0, np.float32)
    for rows, block in X.blocks():
        products = queries @ block.T
        own = (asked >= rows.start) & (asked < rows.stop)
        products[own, asked[own] - rows.start] = -1.0
        np.maximum(best, products.max(axis=1), out=best)
    return best
