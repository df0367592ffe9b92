"""Choose a classifier's hyper-parameters on validation rows, then refit on both: rows in, a Selection out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featcache.errors import UsageError, UserError, one_of
from featcache.subset import carve
from heads.classifiers import CLASSIFIERS
from heads.fitting import Classifier, Params, Task, Trial
from heads.metrics import log_loss
from heads.predictors import Head
from heads.standardization import Floats, Labels

_PATIENCE = 2  # candidates in a row worse than the chain's best by more than one standard error end the chain


@dataclass(frozen=True, eq=False, kw_only=True)
class Selection:
    """What was chosen and how.

    `head` is final; `val_head` was fitted without the validation rows and is the same object where nothing was
    refitted. `candidates` are dicts of params, tried, val_accuracy, val_log_loss (None where there are no
    probabilities), converged and seconds; those not tried have None there. `at_grid_edge` names the parameters chosen
    at an end of their grid. `history` holds dicts of epoch, phase (search | refit), train_loss, train_accuracy,
    val_loss, val_accuracy, lr and seconds, for linear and mlp. `fit_seconds` is search and refit together,
    `epoch_seconds` one epoch of the last training by epochs.
    """

    head: Head
    val_head: Head
    params: Params
    candidates: list[dict[str, Any]]
    how: str
    refit: bool
    at_grid_edge: list[str]
    converged: bool
    notes: list[str]
    history: list[dict[str, Any]]
    fit_seconds: float
    epoch_seconds: float | None


def carve_validation(
    y: Labels, *, fraction: float = 0.1, seed: int = 0, class_names: Sequence[str] | None = None
) -> tuple[Labels, Labels]:
    """Row numbers for training and for validation, ascending int64, a random `fraction` of each class for validation.

    y is int64 (N,). The number is rounded class by class, at least one and never all. Raises UsageError for a fraction
    outside (0, 1), and UserError where a class has one row only, since it cannot be in both parts.
    """
    if not 0 < fraction < 1:
        raise UsageError(f"the validation fraction is {fraction}, expected more than 0 and less than 1")
    for c in np.flatnonzero(np.bincount(y) == 1).tolist():
        name = class_names[c] if class_names is not None else str(c)
        raise UserError(
            f"class {name!r} has one training row, validation needs at least two: "
            "add images of it, or leave it out with --classes"
        )
    return carve(y, fraction=fraction, seed=seed)


def select(
    name: str,
    X_train: Floats,
    y_train: Labels,
    X_val: Floats,
    y_val: Labels,
    *,
    n_classes: int,
    seed: int = 0,
    refit: bool = True,
    device: str = "auto",
    report: Callable[[dict[str, Any]], None] | None = None,
) -> Selection:
    """Search the grid of the classifier `name` (a `--clf` name) and fit the final head.

    X are float32 (N, D), y int64 (N,) in 0..n_classes-1. The highest validation accuracy wins, then the lowest
    validation log-loss where there are probabilities, then the strongest regularisation. `report` is called with each
    candidate as it is done. Raises UsageError for an unknown name, UserError where the training rows are of fewer than
    two classes, hold values that are not finite, or no candidate gives finite scores.
    """
    if name not in CLASSIFIERS:
        raise one_of("classifier", name, list(CLASSIFIERS))
    for X, y in ((X_train, y_train), (X_val, y_val)):
        if X.ndim != 2 or len(X) != len(y) or not len(y):
            raise UserError(f"features {X.shape} and labels {y.shape} do not fit: expected (N, D) and (N,), N > 0")
        if not np.isfinite(X).all():
            raise UserError("the features hold values that are not finite: embed again, with --storage float32")
    classifier = CLASSIFIERS[name]
    task = Task(X=X_train, y=y_train, n_classes=n_classes, seed=seed, device=device)
    if len(task.present) < 2:
        raise UserError(f"the training rows are of {len(task.present)} class, fitting needs at least 2")
    began = time.perf_counter()
    n_total = len(y_train) + (len(y_val) if refit else 0)
    candidates, chosen = _search(classifier, task, X_val, y_val, n_total=n_total, report=report)
    if chosen is None:
        raise UserError(f"{name}: no candidate gives finite scores on the validation rows")
    final = chosen.fitted
    if refit:
        X, y = np.concatenate([X_train, X_val]), np.concatenate([y_train, y_val])
        final = classifier.fit(chosen.params, Task(X=X, y=y, n_classes=n_classes, seed=seed, device=device))

    notes = [note] if (note := classifier.note(chosen.params, task)) else []
    for where, fitted in (("the search", chosen.fitted), ("the refit", final)):
        if not fitted.converged and (where == "the search" or refit):
            notes.append(f"did not converge in {where}: {fitted.message}")
    edges = _edges(chosen.params, [c["params"] for c in candidates], classifier.natural_ends)
    for edge, values in edges.items():
        notes.append(
            f"at the edge of its grid: {edge}={chosen.params[edge]:g}, of {values[0]:g} to {values[-1]:g}; "
            "a better value may lie beyond"
        )
    return Selection(
        head=final.head,
        val_head=chosen.fitted.head,
        params=chosen.params,
        candidates=candidates,
        how=_how(sum(c["tried"] for c in candidates), len(candidates), len(y_val), refit),
        refit=refit,
        at_grid_edge=list(edges),
        converged=chosen.fitted.converged and final.converged,
        notes=notes,
        history=[*chosen.fitted.history, *(final.history if refit else ())],
        fit_seconds=time.perf_counter() - began,
        epoch_seconds=final.epoch_seconds,
    )


def _search(
    classifier: Classifier,
    task: Task,
    X_val: Floats,
    y_val: Labels,
    *,
    n_total: int,
    report: Callable[[dict[str, Any]], None] | None,
) -> tuple[list[dict[str, Any]], Trial | None]:
    """All candidates with their validation scores, and the best trial, if one has finite scores."""
    candidates: list[dict[str, Any]] = []
    best: tuple[tuple[float, float], Trial] | None = None
    for chain in classifier.chains(task, n_total):
        chain_best, worse, tried = -1.0, 0, 0
        clock = time.perf_counter()
        for trial in classifier.search(chain, task, X_val, y_val):
            tried += 1
            accuracy, loss = _validated(trial, y_val)
            candidates.append(
                {
                    "params": trial.params,
                    "tried": True,
                    "val_accuracy": accuracy,
                    "val_log_loss": loss,
                    "converged": trial.fitted.converged,
                    "seconds": time.perf_counter() - clock,
                }
            )
            if report:
                report(candidates[-1])
            clock = time.perf_counter()
            if accuracy is None:
                continue
            rank = (accuracy, -(loss or 0.0))
            if best is None or rank > best[0]:  # of equals the first, most strongly regularised, stays
                best = (rank, trial)
            chain_best = max(chain_best, accuracy)
            error = (chain_best * (1 - chain_best) / len(y_val)) ** 0.5
            worse = worse + 1 if accuracy < chain_best - error else 0
            if classifier.stops_early and worse == _PATIENCE:
                break
        untried = {"tried": False, "val_accuracy": None, "val_log_loss": None, "converged": None, "seconds": None}
        candidates += [{"params": params, **untried} for params in chain[tried:]]
    return candidates, best[1] if best else None


def _validated(trial: Trial, y_val: Labels) -> tuple[float | None, float | None]:
    """Validation accuracy and log-loss of a trial; None where its scores are not finite, or are no probabilities."""
    if not np.isfinite(trial.scores).all():
        return None, None
    accuracy = float((trial.scores.argmax(axis=1) == y_val).mean())
    return accuracy, log_loss(trial.scores, y_val) if trial.fitted.head.probabilistic else None


def _edges(chosen: Params, grid: list[Params], natural_ends: dict[str, tuple[float, ...]]) -> dict[str, list[float]]:
    """The grid of each number that was chosen at an end of it, among candidates with the same optimizer or kernel."""
    names = {key: value for key, value in chosen.items() if isinstance(value, str)}
    alike = [params for params in grid if all(params.get(k) == v for k, v in names.items())]
    edges = {}
    for key, value in chosen.items():
        if isinstance(value, str) or key == "epochs":
            continue
        values = sorted({params[key] for params in alike if key in params})
        if len(values) > 1 and value in (values[0], values[-1]) and value not in natural_ends.get(key, ()):
            edges[key] = values
    return edges


def _how(n_tried: int, n_candidates: int, n_val: int, refit: bool) -> str:
    tried = f"{n_tried} candidates" if n_tried == n_candidates else f"{n_tried} of {n_candidates} candidates"
    left = "" if n_tried == n_candidates else " (the rest came after two in a row worse by more than a standard error)"
    final = "then refitted on train + validation" if refit else "not refitted"
    if n_candidates == 1:
        return f"nothing to choose; scored on {n_val} validation rows, {final}"
    return (
        f"highest validation accuracy of {tried}{left} on {n_val} validation rows, ties by log-loss where there are "
        f"probabilities, then by the stronger regularisation; {final}"
    )
