"""Rows a block at a time in; the sums over them that ridge, discriminants and centroids are solved from out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from heads.features import Features
from heads.fitting import Folds, Task
from heads.predictors import Doubles
from heads.standardization import Floats, Labels

_ROWS = 4096  # turned into float64 at once


@dataclass(frozen=True, eq=False, kw_only=True)
class Moments:
    """Sums over rows of (x - center), float64: they add up, and can be taken away again.

    `counts` and `weights` (K,) are the rows of each class and what they count together; `sums` (K, D) and `scatter` (D,
    D) are weighted sums of the rows by class and of their outer products over all classes; `total` and `squares` (D,)
    are sums in which every row counts 1. `center` (D,) should be near the mean: what is far from it costs digits.
    """

    center: Doubles
    counts: Doubles
    weights: Doubles
    sums: Doubles
    scatter: Doubles
    total: Doubles
    squares: Doubles

    @classmethod
    def zero(cls, center: Doubles, n_classes: int) -> Moments:
        """The moments of no rows."""
        d = len(center)
        return cls(
            center=np.asarray(center, np.float64),
            counts=np.zeros(n_classes),
            weights=np.zeros(n_classes),
            sums=np.zeros((n_classes, d)),
            scatter=np.zeros((d, d)),
            total=np.zeros(d),
            squares=np.zeros(d),
        )

    def add(self, block: Floats, codes: Labels, weights: Doubles | None = None) -> None:
        """Add rows (n, D) of the classes `codes` (n,), each counting `weights` (n,), or 1."""
        from scipy import sparse

        k = len(self.counts)
        for start in range(0, len(block), _ROWS):
            rows = slice(start, start + _ROWS)
            off = np.subtract(block[rows], self.center, dtype=np.float64)
            code, n = codes[rows], len(off)
            weight = np.ones(n) if weights is None else weights[rows]
            # np.add.at takes ten times as long, and a dense (n, K) may not fit
            by_class = sparse.csr_matrix((weight, code, np.arange(n + 1)), shape=(n, k)).T
            self.counts[:] += np.bincount(code, minlength=k)
            self.weights[:] += np.bincount(code, weight, minlength=k)
            part = by_class @ off
            self.sums[:] += part
            if weights is None:
                self.total[:] += part.sum(axis=0)
                product = off.T @ off
                self.squares[:] += np.diagonal(product)
            else:
                self.total[:] += off.sum(axis=0)
                self.squares[:] += np.einsum("ij,ij->j", off, off)
                off *= np.sqrt(weight)[:, None]
                product = off.T @ off
            self.scatter[:] += product

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets of rows, about this one's centre."""
        return self._with(other, 1.0)

    def __sub__(self, other: Moments) -> Moments:
        """The moments of these rows without those of `other`, which are among them."""
        return self._with(other, -1.0)

    def about(self, center: Doubles) -> Moments:
        """The moments of the same rows about another centre (D,)."""
        move, n, weight = self.center - center, self.counts.sum(), self.weights.sum()
        if not move.any():
            return self
        cross = np.outer(self.sums.sum(axis=0), move)
        return Moments(
            center=np.asarray(center, np.float64),
            counts=self.counts,
            weights=self.weights,
            sums=self.sums + np.outer(self.weights, move),
            scatter=self.scatter + cross + cross.T + weight * np.outer(move, move),
            total=self.total + n * move,
            squares=self.squares + 2 * move * self.total + n * move**2,
        )

    def statistics(self) -> tuple[Floats, Floats]:
        """Mean and scale of the columns, float32 (D,), every row counting alike: as `column_statistics`."""
        n = self.counts.sum()
        off = self.total / n
        mean, scale = self.center + off, np.sqrt(np.maximum(self.squares / n - off**2, 0.0))
        scale[scale <= 1e-6 * np.abs(mean)] = 1.0
        scale[scale < np.finfo(np.float32).tiny] = 1.0
        return mean.astype(np.float32), scale.astype(np.float32)

    def standardized(self, mean: Floats, scale: Floats) -> Moments:
        """The moments about 0 of (x - mean) / scale."""
        moved, by = self.about(mean.astype(np.float64)), scale.astype(np.float64)
        return Moments(
            center=np.zeros(len(mean)),
            counts=moved.counts,
            weights=moved.weights,
            sums=moved.sums / by,
            scatter=moved.scatter / by / by[:, None],
            total=moved.total / by,
            squares=moved.squares / by**2,
        )

    def _with(self, other: Moments, sign: float) -> Moments:
        moved = other.about(self.center)
        return Moments(
            center=self.center,
            counts=self.counts + sign * moved.counts,
            weights=self.weights + sign * moved.weights,
            sums=self.sums + sign * moved.sums,
            scatter=self.scatter + sign * moved.scatter,
            total=self.total + sign * moved.total,
            squares=self.squares + sign * moved.squares,
        )


def task_moments(task: Task) -> Moments:
    """The moments of a task's rows by class (n_classes of them), in one pass."""
    moments = Moments.zero(_center(task.X), task.n_classes)
    for rows, block in task.X.blocks():
        moments.add(block, task.y[rows], None if task.weights is None else task.weights[rows])
    return moments


def fold_moments(folds: Folds) -> list[Moments]:
    """The moments of each fold's training rows, in one pass over all rows.

    Rows that the same folds train on are summed once, and each fold's moments are a sum of these sums. Where rows count
    otherwise in each fold (class weights), or there would be more such sums than folds, each fold sums its own.
    """
    tasks = [folds.task(train) for train in folds.train]
    n_images, n_views = len(folds.y), folds.X.n_views
    member = np.zeros((len(folds), n_images), bool)
    for row, train in zip(member, folds.train, strict=True):
        row[train] = True
    kinds, kind = np.unique(member, axis=1, return_inverse=True)
    kind = kind.ravel()
    used = [k for k in range(kinds.shape[1]) if kinds[:, k].any()]
    X = folds.X.expanded()
    zero = Moments.zero(_center(X), folds.n_classes)
    if any(task.weights is not None for task in tasks) or len(used) > len(folds) + 1:
        own = [Moments.zero(zero.center, folds.n_classes) for _ in tasks]
        counted = np.zeros((len(folds), n_images))
        for row, task, train in zip(counted, tasks, folds.train, strict=True):
            row[train] = 1.0 if task.weights is None else task.weights[::n_views]
        for block, codes, images in _blocks(X, folds.y, n_views):
            for moments, inside, weight in zip(own, member, counted, strict=True):
                rows = np.flatnonzero(inside[images])
                moments.add(block[rows], codes[rows], weight[images[rows]])
        return own
    parts = {k: Moments.zero(zero.center, folds.n_classes) for k in used}
    for block, codes, images in _blocks(X, folds.y, n_views):
        for k, moments in parts.items():
            rows = np.flatnonzero(kind[images] == k)
            moments.add(block[rows] if len(rows) < len(block) else block, codes[rows])
    return [sum((parts[k] for k in used if kinds[f, k]), start=zero) for f in range(len(folds))]


def _center(X: Features) -> Doubles:
    return X.block(0, min(1024, len(X))).mean(axis=0, dtype=np.float64)


def _blocks(X: Features, y: Labels, n_views: int) -> Iterator[tuple[Floats, Labels, Labels]]:
    """Blocks of the rows of all views, with each row's label and its image's number."""
    for rows, block in X.blocks():
        images = np.arange(rows.start, rows.stop) // n_views
        yield block, y[images], images
