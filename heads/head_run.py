"""Rows and a recipe in; the fitted head, its predictions and the record of the run out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.cache.cache_file import Cache
from featcache.common import hashing
from featcache.common.machine import versions
from heads.evidence.metrics import Metrics, Tally, evaluate
from heads.features import Features
from heads.fitting import averaged_scores
from heads.folds import validation_of
from heads.predictors import Head, Scores
from heads.recipe import Recipe
from heads.rows import Rows, SplitRows
from heads.runs import SCHEMA, created_now, peak_rss_mb
from heads.search import Report
from heads.selection import Selection, select
from heads.standardization import Labels

_BLOCK_SCORES = 1 << 23  # scores held at once where they are only counted


@dataclass(frozen=True, kw_only=True)
class HeadRun:
    """A finished head.

    Attributes:
        recipe: how it was made.
        head: fitted on train and validation, or on train alone where there was no refit.
        selection: how it was chosen.
        metrics: ``train`` (of ``head`` on what it was fitted on), ``val`` (of heads that never saw what they score),
            ``test``.
        calibration: None, or the temperature; rows and wrong, the rows that it was fitted on and those of them that the
            head has wrong; folds, in which they were scored for it, or None; judged, whether they say how sure the head
            may be; and for val and test log_loss and ece before and after.
        nested: None, or the estimate of ``heads.nested``.
        predictions: ids, labels and scores of val and test, as in ``predictions.npz``. Cross-validated, val holds all
            rows but test, as train does.
    """

    recipe: Recipe
    head: Head
    selection: Selection
    metrics: dict[str, Metrics]
    calibration: dict[str, Any] | None
    nested: dict[str, Any] | None
    predictions: dict[str, NDArray[Any]]


def fit_head(rows: Rows, recipe: Recipe | str, *, report: Report | None = None) -> HeadRun:
    """Choose hyper-parameters on validation, fit the final head, score test once.

    Args:
        rows: disjoint train, val and test.
        recipe: how, or a name of ``heads.classifiers``.
        report: called with each candidate as it is done.
    """
    recipe = Recipe(clf=recipe) if isinstance(recipe, str) else recipe
    n_classes = len(rows.class_names)
    validation = validation_of(rows, recipe)
    selection = select(recipe, validation, report=report)
    nested = None
    if recipe.nested:
        from heads.nested import nested_estimate

        nested = nested_estimate(recipe, validation)
    head, test = selection.head, rows.test
    fitted_on = rows.dev if recipe.refit else rows.train
    val = rows.dev.take(selection.val_rows)
    test_scores = averaged_scores(head, test.features)
    metrics = {
        "train": counted(head, fitted_on.features, fitted_on.labels, n_classes),
        "val": evaluate(selection.val_scores, val.labels, n_classes, head.probabilistic),
        "test": evaluate(test_scores, test.labels, n_classes, head.probabilistic),
    }
    return HeadRun(
        recipe=recipe,
        head=head,
        selection=selection,
        metrics=metrics,
        calibration=_calibration(selection, val, test, test_scores, n_classes),
        nested=nested,
        predictions=_predictions("val", val, selection.val_scores) | _predictions("test", test, test_scores),
    )


def counted(head: Head, features: Features, labels: Labels, n_classes: int) -> Metrics:
    """Metrics of a head on rows whose scores are never held all at once."""
    tally = Tally(n_classes, head.probabilistic)
    for rows, scores in score_blocks(head, features, n_classes):
        tally.add(scores, labels[rows])
    return tally.metrics(intervals=False)


def score_blocks(head: Head, features: Features, n_classes: int) -> Iterator[tuple[slice, Scores]]:
    """The scores of all rows, averaged over views, some rows at a time."""
    size = max(1, min(8192, _BLOCK_SCORES // n_classes))
    for start in range(0, len(features), size):
        rows = np.arange(start, min(start + size, len(features)))
        yield slice(start, start + len(rows)), averaged_scores(head, features.take(rows))


def run_record(caches: Sequence[Cache], rows: Rows, fitted: HeadRun, *, command: str) -> dict[str, Any]:
    """The keys of ``run.json`` for a head on the features of one cache, or of several side by side.

    Cross-validated, every row but test is fitted on and scored: n_train and n_val are both their number.
    """
    recipe, selection, trainable = fitted.recipe, fitted.selection, fitted.head.n_parameters
    held_out = recipe.cv is None
    return {
        "schema": SCHEMA,
        "kind": "head",
        "method": recipe.clf,
        "command": command,
        "created": created_now(),
        "seed": recipe.seed,
        "dataset": {
            "name": caches[0].dataset,
            "fingerprint": rows.fingerprint,
            "class_names": list(rows.class_names),
            "n_train": len(rows.train) if held_out else len(rows.dev),
            "n_val": len(rows.val) if held_out else len(rows.dev),
            "n_test": len(rows.test),
            "chosen": rows.chosen,
        },
        **_encoded(caches),
        "features": {
            "width": rows.dev.features.shape[1],
            "views": rows.dev.features.n_views,
            "pooled": not all(cache.holds_vectors for cache in caches),
        },
        "source": "cache",
        "augment": "none",
        "params": selection.params,
        "selection": {
            "candidates": selection.candidates,
            "how": selection.how,
            "refit": recipe.refit,
            "at_grid_edge": selection.at_grid_edge,
            "val_is_of_best_epoch": selection.val_is_of_best_epoch,
            "validation": selection.validation.to_json(),
            "rule": recipe.rule,
            "select_by": recipe.select_by,
            "class_weight": recipe.class_weight,
            "nested": fitted.nested,
        },
        "calibration": fitted.calibration,
        "converged": selection.converged,
        "notes": [*rows.notes, *selection.notes],
        "trainable_params": trainable,
        "total_params": sum(int(cache.provenance["trunk_parameters"]) for cache in caches) + trainable,
        "frozen_sha256": None,
        "metrics": {split: metrics.to_json() for split, metrics in fitted.metrics.items()},
        "cost": {
            "embed_s": sum(cache.provenance["cost"] for cache in caches),
            "fit_s": round(selection.fit_seconds, 3),
            "epoch_s": selection.epoch_seconds,
            "peak_rss_mb": peak_rss_mb(),
            "device": "cpu" if recipe.device == "auto" and recipe.clf != "knn" else recipe.device,
        },
        "history": selection.history,
        "environment": versions(),
    }


def head_meta(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a saved head tells of itself: enough to refuse features of another encoder."""
    keys = ("schema", "method", "encoder", "encoder_fingerprint", "params", "features")
    return {key: record[key] for key in keys} | {"class_names": record["dataset"]["class_names"]}


def _encoded(caches: Sequence[Cache]) -> dict[str, Any]:
    """What the features are: of several caches the first one's encoder, and all of them in order as ``parts``."""
    parts = [
        {
            "encoder": cache.encoder,
            "encoder_fingerprint": cache.encoder_fingerprint,
            "file": cache.path.name,
            "fingerprint": cache.fingerprint,
            "weights": cache.provenance["weights"],
        }
        for cache in caches
    ]
    files = {key: parts[0][key] for key in ("file", "fingerprint", "weights")}
    if len(parts) == 1:
        return {"encoder": parts[0]["encoder"], "encoder_fingerprint": parts[0]["encoder_fingerprint"], "cache": files}
    backbone = " + ".join(cache.encoder["backbone"] for cache in caches)
    return {
        "encoder": {"backbone": backbone, "parts": [part["encoder"] for part in parts]},
        "encoder_fingerprint": hashing.fingerprint([part["encoder_fingerprint"] for part in parts]),
        "cache": {**files, "parts": parts},
    }


def _calibration(
    selection: Selection, val: SplitRows, test: SplitRows, test_scores: Scores, n_classes: int
) -> dict[str, Any] | None:
    """What calibrating did: log-loss and ECE of softmax(scores) before and of softmax(scores / temperature) after."""
    if selection.uncalibrated is None or selection.calibration is None:
        return None
    head, val_scores = selection.uncalibrated
    before = {"val": val_scores, "test": averaged_scores(head, test.features)}
    after = {"val": selection.val_scores, "test": test_scores}
    told = selection.calibration.to_json()
    for split, labels in (("val", val.labels), ("test", test.labels)):
        told[split] = {}
        for when, scores in (("before", before[split]), ("after", after[split])):
            metrics = evaluate(scores, labels, n_classes, True, intervals=False)
            told[split][when] = {"log_loss": metrics.log_loss, "ece": metrics.ece}
    return told


def _predictions(split: str, rows: SplitRows, scores: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {f"{split}_ids": np.array(rows.ids), f"{split}_labels": rows.labels, f"{split}_scores": scores}
