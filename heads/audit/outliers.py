"""Directions of rows in; those that are far from all others, farthest first, out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from heads.audit.directions import Directions, spread
from heads.nearest import nearest
from heads.predictors import Doubles
from heads.standardization import Labels

NEIGHBOR = 5  # the one whose distance counts: a few odd images that are alike are still odd
DEVIATIONS = 3.5  # Iglewicz and Hoaglin 1993, section 3: modified z-scores above this are outliers

_BANK = 20_000  # rows that stand for all: Sun et al. 2022 lose little with a hundredth of ImageNet


@dataclass(frozen=True, eq=False, kw_only=True)
class Outliers:
    """Rows (P,) int64, and by how many deviations each is farther from its neighbours than is usual, float64 (P,)."""

    rows: Labels
    deviations: Doubles


def outliers(X: Directions, different: Labels, *, limit: int = 1000) -> Outliers:
    """Rows whose distance to their fifth neighbour is unusual.

    The score of Sun et al. 2022 (arXiv:2204.06507, section 3), on a sample of at most 20,000 rows; what is unusual is
    told by the median and the median absolute deviation of the distances.

    Args:
        X: all rows (N, D), about the origin.
        different: the rows to look at, one for each picture, int64, ascending.
        limit: of the outliers.
    """
    pictures = X.take(different)
    n, k = len(different), min(NEIGHBOR + 1, len(different) - 1)  # the nearest in the bank may be the row itself
    if k < 2:
        return Outliers(rows=different[:0], deviations=np.empty(0))
    chosen = spread(_BANK, n)
    bank = pictures.take(chosen).load()
    in_bank = np.zeros(n, bool)
    in_bank[chosen] = True
    cosine = np.empty(n)
    for rows, block in pictures.blocks():
        found, _ = nearest(block, bank, k)
        cosine[rows] = np.where(in_bank[rows], found[:, -1], found[:, -2])
    distance = np.sqrt(np.maximum(2 - 2 * cosine, 0.0))
    median = np.median(distance)
    deviation = max(1.4826 * float(np.median(np.abs(distance - median))), 1e-4)
    z = (distance - median) / deviation
    order = np.argsort(-z, kind="stable")
    order = order[z[order] > DEVIATIONS][:limit]
    return Outliers(rows=different[order], deviations=z[order])
