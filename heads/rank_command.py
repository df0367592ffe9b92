"""``bin/fit-head --rank``: the caches of a data set in; a table of how well a quick head does on each out."""

from __future__ import annotations

import argparse
from typing import Any

from featcache.commands.console import Console
from featcache.common.errors import CacheError
from heads.asked_command import asked_dataset, recipes_of, source_of, workers_of


def rank(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The mode; returns its JSON object."""
    from featcache.cache.cache_file import Cache, find_caches
    from heads.fit_head_tables import ranking_table
    from heads.ranking import RankPiece, of_one_set, rank_entry, ranked
    from heads.sweep import sweep

    (recipe,) = recipes_of(arguments, default="ridge")
    workers = workers_of(arguments)
    there = [Cache.open(path) for path in arguments.cache]
    refusals: list[CacheError] = []
    if not there:
        found = find_caches(arguments.cache_dir, on_refusal=refusals.append)
        there = [cache for cache in found if not cache.is_byproduct]
    caches = [
        cache
        for cache in of_one_set(there, asked_dataset(arguments.dataset))
        if all(getattr(arguments, key) in (None, cache.encoder[key]) for key in ("backbone", "precision"))
    ]
    for error in refusals:
        console.note(f"PASSED OVER {error}")
    pieces = [
        RankPiece(source=source_of(arguments, cache, pool=not cache.holds_vectors), recipe=recipe) for cache in caches
    ]
    entries, others = ranked(list(sweep(rank_entry, pieces, workers)))
    console.table(*ranking_table(caches[0].dataset, recipe.clf, entries))
    if entries[0]["val_is_of_best_epoch"]:
        console.note(
            f"  WARNING: validation accuracies of {recipe.clf} are those of the best epoch on the rows that chose it, "
            "too high for some caches more than for others: rank by another --clf, such as ridge"
        )
    for entry in others:
        console.note(f"{entry['cache']}: left out, its rows are not those of {entries[0]['cache']}")
    console.note(f"bin/fit-head --cache {arguments.cache_dir / entries[0]['cache']} fits on the first")
    return {
        "dataset": caches[0].dataset,
        "method": recipe.clf,
        "ordered_by": "val_accuracy",
        "ranking": entries,
        "left_out": [entry["cache"] for entry in others],
    }
