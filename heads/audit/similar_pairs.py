"""Vectors that need not fit in memory in; all pairs whose cosine is above a threshold, most similar first, out.

Exact, by a bound that is cheap to compute. With an orthonormal basis P of k directions, x = Px + Qx, and by Cauchy and
Schwarz x·y <= Px·Py + |Qx| |Qy|. So the k numbers of Px and the one of |Qx| tell for all pairs which of them may be
above the threshold, and only those are computed in full. Rows are ordered along the first direction, and blocks of rows
that lie further apart in it than the threshold allows are not compared at all.

Memory: k + 1 numbers a row, two blocks of rows, and the pairs that are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from heads.features import Features
from heads.standardization import Floats, Labels

N_DIRECTIONS = 63  # of the sketch; with the length of the rest 64 numbers a row

_SAMPLE = 8192  # rows that the directions are found on
_ROWS = 2048  # compared at once
_SLACK = 2e-5  # what rounding in float32 may take from a product of two rows


@dataclass(frozen=True, eq=False, kw_only=True)
class SimilarPairs:
    """Pairs of rows, most similar first: ``first`` < ``second`` int64 (P,), ``cosine`` float32 (P,).

    Attributes:
        n_found: how many there are; more than P where only the most similar ones were kept.
        n_computed: of how many the cosine was computed.
    """

    first: Labels
    second: Labels
    cosine: Floats
    n_found: int
    n_computed: int

    def __len__(self) -> int:
        return len(self.first)


def similar_pairs(X: Features, threshold: float, *, limit: int = 200_000) -> SimilarPairs:
    """All pairs of rows with a cosine of at least the threshold.

    Args:
        X: rows (N, D) of length 1 (or 0), as `heads.audit.directions` makes them.
        threshold: in (0, 1].
        limit: of the pairs kept, the most similar ones.
    """
    sketch, basis_order = _sketch(X)
    kept = _Kept(limit)
    for rows, columns in _candidates(sketch, basis_order, threshold):
        cosine = _cosines(X, rows, columns)
        above = cosine >= threshold
        kept.add(rows[above], columns[above], cosine[above], n_computed=len(rows))
    return kept.pairs()


def _sketch(X: Features) -> tuple[Floats, Labels]:
    """Each row in the basis, with the length of what is outside it, float32 (N, k + 1), and the order along the first.

    The rows of the sketch are in that order.
    """
    n = len(X)
    sample = X.take(np.unique(np.linspace(0, n - 1, min(n, _SAMPLE)).astype(np.int64))).load().astype(np.float64)
    _, vectors = np.linalg.eigh(sample.T @ sample)
    basis = np.ascontiguousarray(vectors[:, ::-1][:, :N_DIRECTIONS]).astype(np.float32)
    sketch = np.empty((n, basis.shape[1] + 1), np.float32)
    for rows, block in X.blocks():
        inside = block @ basis
        sketch[rows, :-1] = inside
        rest = np.einsum("ij,ij->i", block, block) - np.einsum("ij,ij->i", inside, inside)
        sketch[rows, -1] = np.sqrt(np.maximum(rest, 0.0))
    order = np.argsort(sketch[:, 0], kind="stable").astype(np.int64)
    return sketch[order], order


def _candidates(sketch: Floats, order: Labels, threshold: float) -> Iterator[tuple[Labels, Labels]]:
    """Pairs of rows, each once, whose bound is above the threshold, some at a time."""
    apart = np.sqrt(max(2 - 2 * threshold, 0.0)) + _SLACK
    least = np.float32(threshold - _SLACK)
    along = sketch[:, 0]
    bound = np.empty((_ROWS, _ROWS), np.float32)
    for start in range(0, len(sketch), _ROWS):
        rows = sketch[start : start + _ROWS]
        for other in range(start, len(sketch), _ROWS):
            if along[other] - rows[-1, 0] > apart:
                break
            columns = sketch[other : other + _ROWS]
            here = bound[: len(rows), : len(columns)]
            np.matmul(rows, columns.T, out=here)
            if here.max() < least and other != start:
                continue
            i, j = np.divmod(np.flatnonzero(here >= least), here.shape[1])
            if other == start:
                i, j = i[i < j], j[i < j]
            if len(i):
                a, b = order[start + i], order[other + j]
                yield np.minimum(a, b), np.maximum(a, b)


def _cosines(X: Features, rows: Labels, columns: Labels) -> Floats:
    """Of each pair, computed in full; a row is read once however many pairs it is in."""
    cosine = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _ROWS):
        here = slice(start, start + _ROWS)
        wanted, place = np.unique(np.concatenate([rows[here], columns[here]]), return_inverse=True)
        vectors = X.take(wanted).load()
        n = len(place) // 2
        cosine[here] = np.einsum("ij,ij->i", vectors[place[:n]], vectors[place[n:]])
    return cosine


class _Kept:
    """The most similar pairs so far."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.n_found = self.n_computed = 0
        self.first, self.second = np.empty(0, np.int64), np.empty(0, np.int64)
        self.cosine = np.empty(0, np.float32)

    def add(self, rows: Labels, columns: Labels, cosine: Floats, *, n_computed: int) -> None:
        self.n_found += len(rows)
        self.n_computed += n_computed
        self.first = np.concatenate([self.first, rows])
        self.second = np.concatenate([self.second, columns])
        self.cosine = np.concatenate([self.cosine, cosine])
        if len(self.cosine) > 2 * self.limit:
            self._shorten()

    def _shorten(self) -> None:
        order = np.lexsort((self.second, self.first, -self.cosine))[: self.limit]
        self.first, self.second, self.cosine = self.first[order], self.second[order], self.cosine[order]

    def pairs(self) -> SimilarPairs:
        self._shorten()
        return SimilarPairs(
            first=self.first,
            second=self.second,
            cosine=self.cosine,
            n_found=self.n_found,
            n_computed=self.n_computed,
        )
