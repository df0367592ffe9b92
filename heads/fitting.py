"""What every classifier takes and gives: training rows and folds in, fitted heads and scored trials out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from heads.features import Features
from heads.predictors import Doubles, Head, Scores
from heads.standardization import Floats, Labels, column_statistics, standardized

Params = dict[str, Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """Training rows: X (n_samples, D), y int64 (n_samples,) in 0..n_classes-1; some classes may be missing.

    `weights`, float64 (n_samples,) with mean 1, say how much each row counts; None counts all alike. Each `n_views`
    rows are views of one image (`Features.expanded`), and have the same label.
    """

    X: Features
    y: Labels
    n_classes: int
    weights: Doubles | None = None
    n_views: int = 1
    seed: int = 0
    device: str = "auto"

    @cached_property
    def statistics(self) -> tuple[Floats, Floats]:
        """Mean and scale of the columns of X, float32 (D,), every row counting alike."""
        return column_statistics(self.X)

    @cached_property
    def Z(self) -> Floats:  # noqa: N802
        """X standardised by its own statistics, in memory, float32 (n_samples, D)."""
        return standardized(self.X.load(), *self.statistics)

    @cached_property
    def present(self) -> Labels:
        """The classes that have rows, ascending, int64 (P,)."""
        return np.unique(self.y).astype(np.int64)

    @cached_property
    def codes(self) -> Labels:
        """Each row's position of its class in `present`, int64 (n_samples,)."""
        return np.searchsorted(self.present, self.y).astype(np.int64)


@dataclass(frozen=True, eq=False, kw_only=True)
class Fold:
    """Rows to fit on, and rows to score: X_val (n_val, D), y_val int64 (n_val,)."""

    task: Task
    X_val: Features
    y_val: Labels


@dataclass(frozen=True, eq=False, kw_only=True)
class Folds:
    """Images X (N, D), y int64 (N,), and for each fold the rows (int64, ascending) to fit on and those to score.

    `class_weight` is None or "balanced": rows then count n / (P * rows of their class), P being the classes present.
    """

    X: Features
    y: Labels
    n_classes: int
    train: tuple[Labels, ...]
    val: tuple[Labels, ...]
    class_weight: str | None = None
    seed: int = 0
    device: str = "auto"

    def __len__(self) -> int:
        return len(self.train)

    def task(self, rows: Labels) -> Task:
        """These images as a task, each of their views a row that counts 1 / n_views."""
        X, y = self.X.take(rows), self.y[rows]
        weights = None
        if self.class_weight == "balanced":
            counts = np.bincount(y, minlength=self.n_classes)
            weights = (len(y) / (np.count_nonzero(counts) * np.maximum(counts, 1)))[y]
        n_views = X.n_views
        return Task(
            X=X.expanded(),
            y=np.repeat(y, n_views),
            n_classes=self.n_classes,
            weights=None if weights is None else np.repeat(weights, n_views),
            n_views=n_views,
            seed=self.seed,
            device=self.device,
        )

    def fold(self, number: int) -> Fold:
        """One of the folds."""
        val = self.val[number]
        return Fold(task=self.task(self.train[number]), X_val=self.X.take(val), y_val=self.y[val])


@dataclass(frozen=True, eq=False, kw_only=True)
class Fitted:
    """A fitted head; `message` says why if it did not converge.

    `converged`: the solver met its criterion, as the solver's module states it; a closed form always does. Training by
    epochs has no such criterion: there it says only that the loss stayed finite. Epochs are of such training alone.
    """

    head: Head
    converged: bool = True
    message: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    epoch_seconds: float | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Trial:
    """One candidate fitted in each fold without its validation rows, and its scores (n_val, n_classes) on them.

    `params` is what `fit` needs to fit it again: the candidate's, and what the search added, such as the epochs.
    `saturated`: the rows fitted on are fitted all but perfectly, so that a weaker penalty has nothing left to gain.
    """

    params: Params
    fitted: tuple[Fitted, ...]
    scores: tuple[Scores, ...]
    saturated: bool = False


class Classifier(Protocol):
    """One `--clf`: its candidates, how to search them, and how to fit one of them."""

    @property
    def stops_early(self) -> bool:
        """Whether a chain is left once it only gets worse, because each candidate costs a fit of its own."""

    @property
    def natural_ends(self) -> dict[str, tuple[float, ...]]:
        """Ends of grids beyond which there is nothing, such as k = 1: no edge to warn of."""

    def chains(self, n_train: int, n_features: int, n_total: int) -> list[list[Params]]:
        """The candidates, each chain from strong to weak regularisation.

        n_train rows will be there in the smallest fold, n_total at the refit.
        """

    def search(self, chain: list[Params], folds: Folds) -> Iterator[Trial]:
        """Fit the candidates of a chain one after the other, in any case without looking at the rows to score."""

    def fit(self, params: Params, task: Task) -> Fitted:
        """Fit one candidate on all rows of the task."""

    def note(self, params: Params, task: Task) -> str:
        """What the user should know of how this was fitted, such as an approximation; empty when there is nothing."""

    def beyond(self, best: Params, name: str, up: bool) -> list[Params]:
        """Candidates like `best` whose parameter `name` goes on beyond its value there, strong regularisation first.

        Empty where there is nothing beyond.
        """


def check_weights(weights: Doubles, codes: Labels, classes: NDArray[Any]) -> None:
    """Raises ValueError where row weights (N,), of the classes that codes (N,) number, leave nothing to fit."""
    if not np.isfinite(weights).all():
        raise ValueError("weights that are not finite, expected numbers of 0 or more")
    if not (weights >= 0).all():
        raise ValueError(f"Negative values in weights: the least is {weights.min():g}, expected 0 or more")
    of_class = np.bincount(codes, weights, len(classes))
    if not of_class.all():
        raise ValueError(
            f"the rows of class {classes.tolist()[of_class.argmin()]!r} have weight 0 together, expected more: "
            "leave out its rows or weigh them"
        )


def fold_by_fold(
    search: Callable[[list[Params], Fold], Iterator[tuple[Fitted, Scores]]], chain: list[Params], folds: Folds
) -> Iterator[Trial]:
    """Trials of a chain from what searches one fold: each candidate in all folds, then the next candidate."""
    each = [search(chain, folds.fold(number)) for number in range(len(folds))]
    for params, *found in zip(chain, *each, strict=False):
        yield Trial(params=params, fitted=tuple(f for f, _ in found), scores=tuple(s for _, s in found))


def averaged_scores(head: Head, X: Features) -> Scores:
    """Scores (N, n_classes) of images, averaged over their views: of probabilities where there are some.

    With several views and a probabilistic head the result is the log of the mean probability.
    """
    if X.n_views == 1:
        return head.scores_of(X)
    from scipy import special

    total: Scores | None = None
    for number in range(X.n_views):
        scores = head.scores_of(X.view(number)).astype(np.float64)
        part = special.softmax(scores, axis=1) if head.probabilistic else scores
        total = part if total is None else total + part
    assert total is not None
    mean = total / X.n_views
    return np.log(np.maximum(mean, np.finfo(np.float64).tiny)) if head.probabilistic else mean
