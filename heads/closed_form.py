"""Classifiers that one spectrum solves for every candidate: ridge, lda and centroid; rows in, linear heads out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from featcache.common.errors import UserError
from heads.fitting import Fitted, Folds, Params, Task, Trial, averaged_scores
from heads.grids import continued
from heads.predictors import ABSENT, Doubles, LinearHead, Scores, class_rows
from heads.standardization import Labels
from heads.summaries import Summary, fold_summaries, left_out_dtype, standardized_blocks, summary

Solve = Callable[[Params], tuple[Doubles, Doubles]]
LeaveOut = Callable[[list[Params], Scores, Labels, Doubles], Scores]
_LEFT_OUT = 2**26  # scores held at once when each row is left out


def centroid_solver(rows: Summary) -> Solve:
    """Nearest class mean, Euclidean in standardised features: score = z . m - |m|^2 / 2."""
    means = rows.means
    return lambda params: (means, -0.5 * np.einsum("ij,ij->i", means, means))


def centroid_left_out(rows: Summary) -> LeaveOut:
    """What scores a block of training rows as if each had been left out: (1, n, P); see `lda_left_out`."""

    def leave(chain: list[Params], Z: Scores, codes: Labels, weights: Doubles) -> Scores:
        means, own = rows.means, np.arange(len(Z))
        others = rows.weights[codes] - weights
        t = np.where(others > 1e-9 * weights, weights / np.maximum(others, 1e-9 * weights), 0.0)
        mine = means[codes] - t[:, None] * (Z - means[codes])
        scores = Z @ means.T - 0.5 * np.einsum("ij,ij->i", means, means)
        scores[own, codes] = np.einsum("ij,ij->i", Z, mine) - 0.5 * np.einsum("ij,ij->i", mine, mine)
        return scores[None]

    return leave


@dataclass(frozen=True, kw_only=True)
class ClosedForm:
    """A linear head for each candidate from one solver, which does the work that all candidates share.

    `grid` holds the values of the one parameter `name`, from strong to weak regularisation.
    """

    solver: Callable[[Summary], Solve]
    left_out: Callable[[Summary], LeaveOut]
    name: str = ""
    grid: tuple[float, ...] = ()
    probabilistic: bool = False
    natural_ends: dict[str, tuple[float, ...]] = field(default_factory=dict)
    weightless: bool = False  # class weights change nothing
    stops_early = False

    def chains(self, n_train: int, n_features: int, n_total: int) -> list[list[Params]]:
        return [[{self.name: value} for value in self.grid] if self.name else [{}]]

    def search(self, chain: list[Params], folds: Folds) -> Iterator[Trial]:
        each = [(rows, self.solver(rows)) for rows in fold_summaries(folds)]
        held_out = [folds.X.take(val) for val in folds.val]
        for params in chain:
            fitted = tuple(self._fitted(rows, solve, params) for rows, solve in each)
            scores = tuple(averaged_scores(f.head, X_val) for f, X_val in zip(fitted, held_out, strict=True))
            yield Trial(params=params, fitted=fitted, scores=scores)

    def fit(self, params: Params, task: Task) -> Fitted:
        rows = summary(task)
        return self._fitted(rows, self.solver(rows), params)

    def leave_one_out(self, chain: list[Params], task: Task) -> Iterator[tuple[Params, Scores]]:
        """For each candidate the scores (n_samples, n_classes) of every training row by the fit on all others.

        Exact, but for the standardisation and the row weights, which stay those of all rows. A row that is alone in its
        class gets the score ABSENT for it. Raises UserError where rows are views: an image cannot be left out by one.
        """
        if task.n_views > 1:
            raise UserError(f"leave-one-out takes plain images, the rows are {task.n_views} views of each: give folds")
        rows = summary(task)
        leave = self.left_out(rows)
        weights = np.ones(len(task.y)) if task.weights is None else task.weights
        alone = np.flatnonzero(np.bincount(task.codes)[task.codes] == 1)
        at_once = max(1, _LEFT_OUT // (len(task.y) * len(rows.present)))
        for start in range(0, len(chain), at_once):
            some = chain[start : start + at_once]
            found = np.full((len(some), len(task.y), task.n_classes), ABSENT, np.float32)
            for at, Z in standardized_blocks(task, rows, left_out_dtype(rows, len(task.y))):
                found[:, at, rows.present] = leave(some, Z, task.codes[at], weights[at])
            found[:, alone, task.y[alone]] = ABSENT
            yield from zip(some, found, strict=True)

    def note(self, params: Params, task: Task) -> str:
        if self.weightless and task.weights is not None:
            return "class weights change nothing: a class mean does not know how many rows it is the mean of"
        return ""

    def beyond(self, best: Params, name: str, up: bool) -> list[Params]:
        if name != self.name or best[name] in self.natural_ends.get(name, ()):
            return []
        return continued(self.grid, best, name, up=up, high_is_strong=True)

    def _fitted(self, rows: Summary, solve: Solve, params: Params) -> Fitted:
        weight, bias = class_rows(*solve(params), rows.present, rows.n_classes)
        head = LinearHead(mean=rows.mean, scale=rows.scale, weight=weight, bias=bias, probabilistic=self.probabilistic)
        return Fitted(head=head)
