"""Caches of one data set in; which of them a quick head does best on, by validation, out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from featcache.cache.cache_file import Cache
from featcache.common.errors import UserError
from heads.head_run import fit_head
from heads.recipe import Recipe
from heads.source import Source


@dataclass(frozen=True, kw_only=True)
class RankPiece:
    """A quick head to be fitted on one cache."""

    source: Source
    recipe: Recipe


def of_one_set(caches: Sequence[Cache], dataset: dict[str, str]) -> list[Cache]:
    """Those of the data set asked for (a name or a folder), or of the first cache's where nothing is asked."""
    if not dataset and caches:
        told = caches[0].told()
        dataset = {key: told[key] for key in ("dataset", "folder") if told[key] is not None}
    return [cache for cache in caches if all(cache.told()[key] == value for key, value in dataset.items())]


def rank_entry(piece: RankPiece) -> dict[str, Any]:
    """Fit a head on one cache, of maps their averages, and tell how well it does; no run is written."""
    (cache,) = piece.source.caches()
    rows = piece.source.rows(seed=piece.recipe.seed)
    fitted = fit_head(rows, piece.recipe)
    val, test = fitted.metrics["val"], fitted.metrics["test"]
    return {
        "cache": cache.path.name,
        "backbone": cache.encoder["backbone"],
        "weights": cache.provenance["weights"],
        "cut": cache.encoder["cut"],
        "precision": cache.encoder["precision"],
        "features": rows.train.features.shape[1],
        "pooled": piece.source.pool_maps,
        "params": fitted.selection.params,
        "val_accuracy": val.accuracy,
        "val_is_of_best_epoch": fitted.selection.val_is_of_best_epoch,
        "test_accuracy": test.accuracy,
        "test_accuracy_ci95": list(test.accuracy_ci95),
        "fit_s": round(fitted.selection.fit_seconds, 3),
        "embed_s": cache.provenance["cost"],
        "rows": rows.fingerprint,
        "notes": fitted.selection.notes,
    }


def ranked(entries: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Those with the rows of the first, best validation accuracy first, of equals the shorter features; and the others.

    Accuracies on different rows say nothing about the features.
    """
    if not entries:
        raise UserError("no caches to rank; make some with bin/embed")
    alike = [entry for entry in entries if entry["rows"] == entries[0]["rows"]]
    others = [entry for entry in entries if entry["rows"] != entries[0]["rows"]]
    return sorted(alike, key=lambda entry: (-entry["val_accuracy"], entry["features"])), others
