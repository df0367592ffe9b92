"""What every classifier takes and gives: a task of training rows in, fitted heads and scored trials out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from heads.predictors import Head, Scores
from heads.standardization import Floats, Labels, column_statistics, standardized

Params = dict[str, Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """Training rows: X float32 (n_samples, D), y int64 (n_samples,) in 0..n_classes-1; some classes may be missing."""

    X: Floats
    y: Labels
    n_classes: int
    seed: int = 0
    device: str = "auto"

    @cached_property
    def statistics(self) -> tuple[Floats, Floats]:
        """Mean and scale of the columns of X, float32 (D,)."""
        return column_statistics(self.X)

    @cached_property
    def Z(self) -> Floats:  # noqa: N802
        """X standardised by its own statistics, float32 (n_samples, D)."""
        return standardized(self.X, *self.statistics)

    @cached_property
    def present(self) -> Labels:
        """The classes that have rows, ascending, int64 (P,)."""
        return np.unique(self.y).astype(np.int64)

    @cached_property
    def codes(self) -> Labels:
        """Each row's position of its class in `present`, int64 (n_samples,)."""
        return np.searchsorted(self.present, self.y).astype(np.int64)


@dataclass(frozen=True, eq=False, kw_only=True)
class Fitted:
    """A fitted head; `message` says why where it did not converge. Epochs only where it was trained by epochs."""

    head: Head
    converged: bool = True
    message: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    epoch_seconds: float | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Trial:
    """One candidate fitted without validation rows, and its scores (n_val, n_classes) on them.

    `params` is what `fit` needs to fit it again: the candidate's, and what the search added, such as the epochs.
    """

    params: Params
    fitted: Fitted
    scores: Scores


class Classifier(Protocol):
    """One `--clf`: its candidates, how to search them, and how to fit one of them."""

    @property
    def stops_early(self) -> bool:
        """Whether a chain is left once it only gets worse, because each candidate costs a fit of its own."""

    @property
    def natural_ends(self) -> dict[str, tuple[float, ...]]:
        """Ends of grids beyond which there is nothing, such as k = 1: no edge to warn of."""

    def chains(self, task: Task, n_total: int) -> list[list[Params]]:
        """The candidates, each chain from strong to weak regularisation; n_total rows will be there at the refit."""

    def search(self, chain: list[Params], task: Task, X_val: Floats, y_val: Labels) -> Iterator[Trial]:
        """Fit the candidates of a chain one after the other, in any case without looking at the rows of X_val."""

    def fit(self, params: Params, task: Task) -> Fitted:
        """Fit one candidate on all rows of the task."""

    def note(self, params: Params, task: Task) -> str:
        """What the user should know of how this was fitted, such as an approximation; empty when there is nothing."""
