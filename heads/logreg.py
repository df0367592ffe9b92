"""The classifier `logreg`: folds and a path of C in, logistic heads, found for all folds together, out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from heads.fitting import Fitted, Folds, Params, Task, Trial, averaged_scores
from heads.grids import continued
from heads.margins import row_counts
from heads.predictors import Doubles, LinearHead, class_rows
from heads.softmax_objective import SoftmaxObjective
from heads.softmax_path import MAX_PASSES, Minima, softmax_path

_SEARCH_TOLERANCE = 1e-5  # of the objective, where only validation scores are compared; the final fit is closer
_SATURATED = 0.999  # of the loss of the classes' shares alone, explained in all folds: glmnet's devmax


@dataclass(frozen=True, kw_only=True)
class LogReg:
    """Multinomial logistic regression with an L2 penalty on standardised features, scikit-learn's objective.

    The path ends where the training rows are explained all but fully (Friedman, Hastie and Tibshirani 2010, section
    2.5): beyond, weights only grow.
    """

    C: tuple[float, ...]
    max_passes: int = MAX_PASSES
    natural_ends: dict[str, tuple[float, ...]] = field(default_factory=dict)
    stops_early = True

    def chains(self, n_train: int, n_features: int, n_total: int) -> list[list[Params]]:
        return [[{"C": C} for C in self.C]]

    def search(self, chain: list[Params], folds: Folds) -> Iterator[Trial]:
        """All folds at each C in turn; folds whose training rows lack different classes are taken by themselves."""
        each = [folds.fold(number) for number in range(len(folds))]
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, fold in enumerate(each):
            groups.setdefault(tuple(fold.task.present.tolist()), []).append(number)
        paths = [(group, _path(folds, [each[i].task for i in group], group, chain)) for group in groups.values()]
        for params in chain:
            fitted: dict[int, Fitted] = {}
            explained = 1.0
            for group, path in paths:
                minima = next(path)
                fitted |= {i: _fitted(minima, place, each[i].task) for place, i in enumerate(group)}
                explained = min(explained, float(minima.explained.min()))
            in_order = tuple(fitted[i] for i in range(len(each)))
            scores = tuple(averaged_scores(f.head, fold.X_val) for f, fold in zip(in_order, each, strict=True))
            yield Trial(params=params, fitted=in_order, scores=scores, saturated=explained > _SATURATED)

    def fit(self, params: Params, task: Task) -> Fitted:
        mean, scale = task.statistics
        objective = SoftmaxObjective(
            X=task.X,
            codes=task.codes,
            weights=_counts(task)[:, None],
            n_classes=len(task.present),
            mean=mean,
            scale=scale,
            device=_device(task),
        )
        return _fitted(
            next(softmax_path(objective, [params["C"]], tol=objective.finest, max_passes=self.max_passes)), 0, task
        )

    def note(self, params: Params, task: Task) -> str:
        return ""

    def beyond(self, best: Params, name: str, up: bool) -> list[Params]:
        return continued(self.C, best, name, up=up) if name == "C" else []


def _path(folds: Folds, tasks: list[Task], group: list[int], chain: list[Params]) -> Iterator[Minima]:
    """The path of the folds in a group, which train on the same classes: the rows of all folds are read once a pass."""
    X, n_views, present = folds.X.expanded(), folds.X.n_views, tasks[0].present
    y = np.repeat(folds.y, n_views)
    weights = np.zeros((len(y), len(group)))
    for place, (number, task) in enumerate(zip(group, tasks, strict=True)):
        rows = (folds.train[number][:, None] * n_views + np.arange(n_views)).ravel()
        weights[rows, place] = _counts(task)
    used = np.flatnonzero(weights.any(axis=1))
    if len(used) < len(y):
        X, y, weights = X.take(used), y[used], weights[used]
    statistics = [task.statistics for task in tasks]
    mean, scale = statistics[0]
    means = np.stack([(own.astype(np.float64) - mean) / scale for own, _ in statistics])
    scales = np.stack([own.astype(np.float64) / scale for _, own in statistics])
    objective = SoftmaxObjective(
        X=X,
        codes=np.searchsorted(present, y).astype(np.int64),
        weights=weights,
        n_classes=len(present),
        mean=mean,
        scale=scale,
        device=_device(tasks[0]),
    )
    alone = len(group) == 1
    return softmax_path(
        objective,
        [params["C"] for params in chain],
        means=None if alone else means,
        scales=None if alone else scales,
        tol=_SEARCH_TOLERANCE,
    )


def _counts(task: Task) -> Doubles:
    """What each row counts in the sum of losses, float64 (n_samples,)."""
    counts = row_counts(task)
    return np.ones(len(task.y)) if counts is None else np.asarray(counts, np.float64)


def _device(task: Task) -> str:
    """The GPU that was asked for by name; `auto` is the processor, whose start costs nothing."""
    return "cpu" if task.device == "auto" else task.device


def _fitted(minima: Minima, place: int, task: Task) -> Fitted:
    weights, intercepts = minima.weights[place], minima.intercepts[place]
    if len(weights) == 1:  # two classes: softmax of (0, z) is the sigmoid of z
        weights = np.concatenate([0 * weights, weights])
        intercepts = np.concatenate([0 * intercepts, intercepts])
    weight, bias = class_rows(weights, intercepts, task.present, task.n_classes)
    mean, scale = task.statistics
    head = LinearHead(mean=mean, scale=scale, weight=weight, bias=bias, probabilistic=True)
    return Fitted(head=head, converged=not minima.messages[place], message=minima.messages[place])
