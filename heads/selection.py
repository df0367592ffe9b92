"""Choose a classifier's hyper-parameters without a look at test, then fit the final head: rows in, a Selection out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from featcache.common.errors import UserError
from heads.calibrating import Calibration, calibrate
from heads.classifiers import CLASSIFIERS
from heads.fitting import Fitted, Params
from heads.folds import Validation
from heads.predictors import ABSENT, Head, Scores
from heads.recipe import Recipe
from heads.search import Candidate, Report, Search
from heads.standardization import Labels


@dataclass(frozen=True, eq=False, kw_only=True)
class Selection:
    """What was chosen and how.

    Attributes:
        head: final; calibrated where that was asked for.
        val_head: of one held-out part the head that never saw it, the same object as ``head`` where nothing was
            refitted and nothing calibrated; else None, for each row was scored by another.
        val_rows: the rows that were scored without having been fitted on, int64 ascending, and ``val_scores``, float
            (n, n_classes), theirs.
        calibration: the temperature that the scores were divided by if the head was calibrated, else None;
            ``uncalibrated`` are then the head and the val_scores before.
        params: chosen.
        candidates: dicts of params, tried, val_accuracy, val_balanced_accuracy, val_log_loss (None where there are no
            probabilities), val_error (the standard error of what it was chosen by), converged, seconds, and extended,
            true, where they lie beyond the grid; those not tried have None.
        how: in a sentence. rule, select_by, validation: what was asked for.
        at_grid_edge: the parameters chosen at an end of their grid, however it was continued.
        history: dicts of epoch, phase (search | refit), fold (where there are several), train_loss, train_accuracy,
            val_loss, val_accuracy, lr and seconds, for linear and mlp.
        fit_seconds: search and refit together. epoch_seconds: one epoch of the last training by epochs.
    """

    head: Head
    val_head: Head | None
    val_rows: Labels
    val_scores: Scores
    calibration: Calibration | None
    uncalibrated: tuple[Head, Scores] | None
    params: Params
    candidates: list[dict[str, Any]]
    how: str
    validation: Validation
    at_grid_edge: list[str]
    converged: bool
    notes: list[str]
    history: list[dict[str, Any]]
    fit_seconds: float
    epoch_seconds: float | None

    @property
    def temperature(self) -> float | None:
        """What the scores were divided by, None where the head was not calibrated."""
        return None if self.calibration is None else self.calibration.temperature

    @property
    def val_is_of_best_epoch(self) -> bool:
        """Whether the validation scores are those of the epoch that did best on these very rows, and so too high."""
        return "epochs" in self.params


def select(recipe: Recipe, validation: Validation, *, report: Report | None = None) -> Selection:
    """Search the grid of a recipe's classifier and fit the final head.

    The highest validation score wins, then the lowest validation log-loss where there are probabilities, then the
    strongest regularisation; or what `recipe.rule` says. `report` is called with each candidate as it is done. Raises
    UserError where the rows are of fewer than two classes, hold values that are not finite, no candidate gives finite
    scores, or the head cannot be calibrated as the recipe asks.
    """
    check_rows(validation)
    folds, classifier = validation.folds, CLASSIFIERS[recipe.clf]
    began = time.perf_counter()
    search = Search(
        classifier=classifier,
        validation=validation,
        balanced=recipe.select_by == "balanced-accuracy",
        one_se=recipe.rule == "one-se",
        vet=_calibratable if recipe.calibrate else None,
        report=report,
    )
    search.run(n_total=len(folds.y) if recipe.refit else validation.smallest)
    best, chosen = search.best(), search.chosen()
    if best is None or chosen is None:
        raise UserError(f"{recipe.clf}: no candidate gives finite scores on the validation rows")
    final = classifier.fit(chosen.params, validation.whole()) if recipe.refit else chosen.fitted[0]
    task = validation.whole() if recipe.refit else folds.task(folds.train[0])
    notes = [*validation.notes, *([note] if (note := classifier.note(chosen.params, task)) else [])]
    notes += _unconverged(chosen.fitted, final if recipe.refit else None)
    if "epochs" in chosen.params:
        notes.append("the validation accuracy is that of the best epoch on the rows that chose it, and so too high")
    edges = search.edges(best)
    notes += [_edge_note(best, edge, values, chosen is best) for edge, values in edges.items()]

    head, calibration, temperature, uncalibrated = final.head, None, None, None
    val_rows = np.concatenate(validation.scored)
    order = np.argsort(val_rows)
    scored = np.concatenate(search.scores(chosen))
    val_scores = scored[order]
    if recipe.calibrate:
        calibration = calibrate(recipe.clf, chosen.params, validation, scored, probabilistic=head.probabilistic)
        temperature = calibration.temperature
        notes += calibration.notes
        head, uncalibrated = head.scaled(temperature), (head, val_scores)
        val_scores = (
            _divided(val_scores, temperature)
            if validation.kind == "loo"
            else np.concatenate(search.scores(chosen, temperature=temperature))[order]
        )
    val_head = None
    if validation.kind == "holdout":
        val_head = chosen.fitted[0].head
        if temperature is not None:
            val_head = head if not recipe.refit else val_head.scaled(temperature)
    return Selection(
        head=head,
        val_head=val_head,
        val_rows=val_rows[order],
        val_scores=val_scores,
        calibration=calibration,
        uncalibrated=uncalibrated,
        params=chosen.params,
        candidates=[candidate.to_json() for candidate in search.candidates],
        how=_how(recipe, validation, search.candidates),
        validation=validation,
        at_grid_edge=list(edges),
        converged=all(fitted.converged for fitted in (*chosen.fitted, final)),
        notes=notes,
        history=_history(chosen.fitted, final if recipe.refit else None),
        fit_seconds=time.perf_counter() - began,
        epoch_seconds=final.epoch_seconds,
    )


def fit_unvalidated(recipe: Recipe, validation: Validation) -> tuple[Head, Params]:
    """Fit the final head where there are no rows to choose on, and the candidate that it is of.

    It is the candidate a third of the way from strong to weak regularisation, chosen before any row is seen: with so
    few rows, weaker ones have the variance and the strongest one has learned next to nothing.
    """
    check_rows(validation)
    folds, classifier = validation.folds, CLASSIFIERS[recipe.clf]
    n_rows = len(folds.y)
    candidates = [params for chain in classifier.chains(n_rows, folds.X.shape[1], n_rows) for params in chain]
    params = candidates[len(candidates) // 3]
    if "schedule_epochs" in params:
        params = params | {"epochs": params["schedule_epochs"]}
    return classifier.fit(params, validation.whole()).head, params


def check_rows(validation: Validation) -> None:
    """Refuse rows that no classifier can be fitted on. Raises UserError."""
    folds = validation.folds
    if len(folds.X) != len(folds.y) or not len(folds.y):
        raise UserError(f"features {folds.X.shape} and labels {folds.y.shape} do not fit: expected (N, D), (N,), N > 0")
    for rows in folds.train or (np.arange(len(folds.y)),):
        if (present := len(np.unique(folds.y[rows]))) < 2:
            raise UserError(f"the training rows are of {present} class, fitting needs at least 2")
    for _, block in folds.X.expanded().blocks():
        if not np.isfinite(block).all():
            raise UserError("the features hold values that are not finite: embed again, with --storage float32")


def _calibratable(head: Head) -> None:
    """Refuse, as soon as there is a first head, what cannot be calibrated."""
    try:
        head.scaled(1.0)
    except UserError as error:
        raise UserError(f"--calibrate: {error}; leave it out, or choose another --clf") from error


def _divided(scores: Scores, temperature: float) -> Scores:
    """Scores of a calibrated linear head from those of the head before."""
    return np.where(scores > ABSENT / 2, scores / temperature, scores).astype(scores.dtype)


def _unconverged(searched: tuple[Fitted, ...], refitted: Fitted | None) -> list[str]:
    """What did not converge, once for the search however many folds it had."""
    failed = next((fitted for fitted in searched if not fitted.converged), None)
    notes = [f"did not converge in the search: {failed.message}"] if failed else []
    if refitted and not refitted.converged:
        notes.append(f"did not converge in the refit: {refitted.message}")
    return notes


def _edge_note(best: Candidate, name: str, values: list[float], chosen: bool) -> str:
    whose = "" if chosen else "the best score is "
    return (
        f"{whose}at the edge of its grid: {name}={best.params[name]:g}, of {values[0]:g} to {values[-1]:g}; "
        "a better value may lie beyond"
    )


def _history(searched: tuple[Fitted, ...], refitted: Fitted | None) -> list[dict[str, Any]]:
    history = []
    for number, fitted in enumerate(searched):
        fold = {"fold": number} if len(searched) > 1 else {}
        history += [{**epoch, **fold} for epoch in fitted.history]
    return history + (refitted.history if refitted else [])


def _how(recipe: Recipe, validation: Validation, candidates: list[Candidate]) -> str:
    n_tried, n_candidates = sum(c.tried for c in candidates), len(candidates)
    tried = f"{n_tried} candidates" if n_tried == n_candidates else f"{n_tried} of {n_candidates} candidates"
    left = ""
    if n_tried < n_candidates:
        saturated = any(c.saturated for c in candidates)
        why = (
            "a training fit that is all but perfect"
            if saturated
            else "two in a row worse by more than a standard error"
        )
        left = f" (the rest came after {why})"
    final = "not refitted"
    if recipe.refit:
        final = "then refitted on " + ("train + validation" if validation.kind == "holdout" else "all of them")
    if n_candidates == 1:
        return f"nothing to choose; scored on {validation}, {final}"
    score = f"validation {recipe.select_by.replace('-', ' ')}"
    if recipe.rule == "one-se":
        error = "over the folds" if validation.kind == "cv" else "binomial"
        return (
            f"the most strongly regularised of {tried}{left} whose {score} on {validation} is within one standard "
            f"error ({error}) of the highest; {final}"
        )
    by = "log-loss where there are probabilities"
    if "temperature" in candidates[0].params:
        by = "log-loss with one more row that is wrong"
    return (
        f"highest {score} of {tried}{left} on {validation}, ties by {by}, then by the stronger regularisation; {final}"
    )
