"""Training rows in; standardised class means and spectra of scatters, all that closed forms need to know, out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from heads.fitting import Folds, Task
from heads.moments import Moments, fold_moments, task_moments
from heads.predictors import Doubles, Scores
from heads.spectra import Spectrum, spectrum_of_rows, spectrum_of_scatter
from heads.standardization import Floats, Labels

PRECISE_ROWS = 16384  # more rows than this, if they are more than the columns, are left out in float32
_ROWS = 4096  # standardised at once


@dataclass(frozen=True, eq=False, kw_only=True)
class Summary(ABC):
    """Rows as closed forms see them, standardised with `mean` and `scale` (float32, (D,)).

    For the P classes in `present` (P,), `weights` (P,) is what their rows count together and `means` (P, D) their
    weighted mean, float64. `n_classes` counts the absent classes too. Each image is there `n_views` times over.
    """

    mean: Floats
    scale: Floats
    present: Labels
    weights: Doubles
    means: Doubles
    n_classes: int
    n_views: int = 1

    @property
    def center(self) -> Doubles:
        """The weighted mean of all rows, (D,)."""
        return self.weights @ self.means / self.weights.sum()

    @cached_property
    def total(self) -> Spectrum:
        """The spectrum of the weighted scatter about the mean of all rows."""
        return self._spectrum(within=False)

    @cached_property
    def within(self) -> Spectrum:
        """The spectrum of the weighted scatter about each row's class mean."""
        return self._spectrum(within=True)

    @abstractmethod
    def _spectrum(self, *, within: bool) -> Spectrum: ...


@dataclass(frozen=True, eq=False, kw_only=True)
class TallSummary(Summary):
    """Of more rows than columns: `scatter` (D, D) is about 0."""

    scatter: Doubles

    def _spectrum(self, *, within: bool) -> Spectrum:
        centers, weights = self.means, self.weights
        if not within:
            centers, weights = self.center[None], self.weights.sum(keepdims=True)
        moved = centers * np.sqrt(weights)[:, None]
        # the difference has no more digits than what it is made of
        return spectrum_of_scatter(self.scatter - moved.T @ moved, largest=float(np.diagonal(self.scatter).max()))


@dataclass(frozen=True, eq=False, kw_only=True)
class WideSummary(Summary):
    """Of fewer rows than columns: the rows Z (N, D) themselves, their classes and what each counts, (N,)."""

    Z: Doubles
    codes: Labels
    row_weights: Doubles

    def _spectrum(self, *, within: bool) -> Spectrum:
        off = self.Z - (self.means[self.codes] if within else self.center)
        return spectrum_of_rows(off * np.sqrt(self.row_weights)[:, None])


def tall(moments: Moments, *, n_views: int = 1, standardize: bool = True) -> TallSummary:
    """The summary of rows whose moments by class are these; only centred where not to `standardize`."""
    mean, scale = moments.statistics()
    if not standardize:
        scale = np.ones_like(scale)
    of_z = moments.standardized(mean, scale)
    present = np.flatnonzero(of_z.counts > 0.5)
    return TallSummary(
        mean=mean,
        scale=scale,
        present=present,
        weights=of_z.weights[present],
        means=of_z.sums[present] / of_z.weights[present, None],
        n_classes=len(of_z.counts),
        n_views=n_views,
        scatter=of_z.scatter,
    )


def wide(task: Task, *, standardize: bool = True) -> WideSummary:
    """The summary of few rows, which are held in memory; only centred where not to `standardize`."""
    mean, scale = task.statistics
    if not standardize:
        scale = np.ones_like(scale)
    Z = task.X.load().astype(np.float64)
    Z -= mean
    Z /= scale
    row_weights = np.ones(len(task.y)) if task.weights is None else task.weights
    weights = np.bincount(task.codes, row_weights).astype(np.float64)
    means = np.zeros((len(task.present), len(mean)))
    np.add.at(means, task.codes, Z * row_weights[:, None])
    return WideSummary(
        mean=mean,
        scale=scale,
        present=task.present,
        weights=weights,
        means=means / weights[:, None],
        n_classes=task.n_classes,
        n_views=task.n_views,
        Z=Z,
        codes=task.codes,
        row_weights=row_weights,
    )


def summary(task: Task, *, standardize: bool = True) -> Summary:
    """The summary of a task's rows; one pass over them where there are more rows than columns."""
    if len(task.y) < task.X.shape[1]:
        return wide(task, standardize=standardize)
    return tall(task_moments(task), n_views=task.n_views, standardize=standardize)


def standardized_blocks(
    task: Task, rows: Summary, dtype: type[np.floating[Any]] = np.float32
) -> Iterator[tuple[slice, Scores]]:
    """The rows that a summary is of, standardised as it says: which ones, and Z (n, D)."""
    for at, block in task.X.blocks(_ROWS):
        Z = np.subtract(block, rows.mean, dtype=dtype)
        Z /= rows.scale
        yield at, Z


def left_out_dtype(rows: Summary, n_samples: int) -> type[np.floating[Any]]:
    """What blocks are to be computed in: float32 rotates many rows in half the time, to about six digits."""
    return np.float64 if isinstance(rows, WideSummary) or n_samples <= PRECISE_ROWS else np.float32


def fold_summaries(folds: Folds) -> list[Summary]:
    """The summary of each fold's training rows; one pass serves all folds."""
    if min(len(train) for train in folds.train) * folds.X.n_views < folds.X.shape[1]:
        return [summary(folds.task(train)) for train in folds.train]
    return [tall(moments, n_views=folds.X.n_views) for moments in fold_moments(folds)]
