"""Rows and a classifier's name in; the fitted head, its predictions and the record of the run out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.cache import Cache
from featcache.machine import versions
from heads.metrics import Metrics, evaluate
from heads.predictors import Head
from heads.rows import Rows, SplitRows
from heads.runs import SCHEMA, created_now, peak_rss_mb
from heads.selection import Selection, select


@dataclass(frozen=True)
class HeadRun:
    """A finished head.

    Attributes:
        head: fitted on train and validation, or on train alone where there was no refit.
        selection: how it was chosen.
        metrics: ``train`` (of ``head`` on what it was fitted on), ``val`` (of the head that never saw it), ``test``.
        predictions: ids, labels and scores of val and test, as in ``predictions.npz``.
    """

    head: Head
    selection: Selection
    metrics: dict[str, Metrics]
    predictions: dict[str, NDArray[Any]]


def fit_head(
    rows: Rows,
    clf: str,
    *,
    seed: int = 0,
    refit: bool = True,
    device: str = "auto",
    report: Callable[[dict[str, Any]], None] | None = None,
) -> HeadRun:
    """Choose hyper-parameters on validation, fit the final head, score test once.

    Args:
        rows: disjoint train, val and test.
        clf: a name of ``heads.classifiers``.
        seed: of everything random in the fit.
        refit: whether the final head is fitted on train and validation together.
        device: where the classifiers that torch trains run.
        report: called with each candidate as it is done.
    """
    n_classes = len(rows.class_names)
    train, val, test = rows.train, rows.val, rows.test
    selection = select(
        clf,
        train.features,
        train.labels,
        val.features,
        val.labels,
        n_classes=n_classes,
        seed=seed,
        refit=refit,
        device=device,
        report=report,
    )
    head = selection.head
    fitted_on = [train, val] if refit else [train]
    scores = {
        "train": np.concatenate([head.scores(part.features) for part in fitted_on]),
        "val": selection.val_head.scores(val.features),
        "test": head.scores(test.features),
    }
    labels = {"train": np.concatenate([part.labels for part in fitted_on]), "val": val.labels, "test": test.labels}
    metrics = {name: evaluate(scores[name], labels[name], n_classes, head.probabilistic) for name in scores}
    predictions = _predictions("val", val, scores["val"]) | _predictions("test", test, scores["test"])
    return HeadRun(head, selection, metrics, predictions)


def run_record(
    cache: Cache, rows: Rows, clf: str, fitted: HeadRun, *, command: str, seed: int, device: str
) -> dict[str, Any]:
    """The keys of ``run.json`` for a head."""
    selection, trainable = fitted.selection, fitted.head.n_parameters
    return {
        "schema": SCHEMA,
        "kind": "head",
        "method": clf,
        "command": command,
        "created": created_now(),
        "seed": seed,
        "dataset": {
            "name": cache.dataset,
            "fingerprint": rows.fingerprint,
            "class_names": list(rows.class_names),
            "n_train": len(rows.train),
            "n_val": len(rows.val),
            "n_test": len(rows.test),
            "chosen": rows.chosen,
        },
        "encoder": cache.encoder,
        "encoder_fingerprint": cache.encoder_fingerprint,
        "cache": {
            "file": cache.path.name,
            "fingerprint": cache.fingerprint,
            "weights": cache.provenance["weights"],
        },
        "source": "cache",
        "augment": "none",
        "params": selection.params,
        "selection": {
            "candidates": selection.candidates,
            "how": selection.how,
            "refit": selection.refit,
            "at_grid_edge": selection.at_grid_edge,
        },
        "converged": selection.converged,
        "notes": [*rows.notes, *selection.notes],
        "trainable_params": trainable,
        "total_params": int(cache.provenance["trunk_parameters"]) + trainable,
        "frozen_sha256": None,
        "metrics": {split: metrics.to_json() for split, metrics in fitted.metrics.items()},
        "cost": {
            "embed_s": cache.provenance["cost"],
            "fit_s": round(selection.fit_seconds, 3),
            "epoch_s": selection.epoch_seconds,
            "peak_rss_mb": peak_rss_mb(),
            "device": device,
        },
        "history": selection.history,
        "environment": versions(),
    }


def head_meta(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a saved head tells of itself: enough to refuse features of another encoder."""
    keys = ("schema", "method", "encoder", "encoder_fingerprint", "params")
    return {key: record[key] for key in keys} | {"class_names": record["dataset"]["class_names"]}


def _predictions(split: str, rows: SplitRows, scores: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {f"{split}_ids": np.array(rows.ids), f"{split}_labels": rows.labels, f"{split}_scores": scores}
