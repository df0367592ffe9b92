"""Rows and the caches that are there in; the caches that hold these rows as a backbone sees them, and where, out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.cache.cache_file import Cache, find_caches
from featcache.cache.split import CachedSplit
from featcache.common.errors import CacheError
from featcache.common.hashing import canonical_json
from featcache.models.backbones import Backbone
from featcache.sources.augmented_views import Augmentation
from finetune.map_source import CachedMaps
from finetune.sources import Labels
from heads.rows import Rows


def matching_caches(
    cache: Cache,
    folder: Path,
    backbone: Backbone,
    rows: Rows,
    *,
    precision: str,
    storage: str | None,
    augmentation: Augmentation | None,
    needs_views: bool,
) -> list[Cache]:
    """The caches, of vectors or maps, that hold all rows as these weights see them; by any engine.

    Args:
        cache: that the rows were chosen from; it may be one of them.
        folder: of the others.
        backbone: with its weights and preprocessing.
        rows: to train on.
        precision: that the stages compute in.
        storage: of the features; None takes any.
        augmentation: of the views that it must have at least; None asks for no such ones.
        needs_views: whether it must have some.
    """
    wanted = backbone.encoder(cut=None, precision=precision, storage="")
    same = ("backbone", "weights", "preprocessing", "precision")
    found = {each.path.resolve(): each for each in (cache, *find_caches(folder))}
    return [
        each
        for each in found.values()
        if all(canonical_json(each.encoder[key]) == canonical_json(wanted[key]) for key in same)
        and storage in (None, each.encoder["storage"])
        and _has_views(each, augmentation, needs_views)
        and held_rows(each, cache, rows) is not None
    ]


def n_views_of(cache: Cache) -> int:
    """Of each row, the plain one included."""
    return 1 + int(cache.encoder["views"]["views"]) if cache.encoder["views"] else 1


def held_rows(found: Cache, cache: Cache, rows: Rows) -> dict[str, CachedMaps] | None:
    """Where the rows of train, val and test lie in a cache; None unless it holds them all, of the same images.

    Args:
        found: the cache to look in.
        cache: that the rows were chosen from.
        rows: to find.
    """
    held = {}
    for part, wanted in (("train", rows.train), ("val", rows.val), ("test", rows.test)):
        split = split_of(part, rows)
        own = _rows_held(cache.splits[split], wanted.ids)
        there = None if split not in found.splits else _rows_held(found.splits[split], wanted.ids)
        if own is None or there is None:
            return None
        try:
            if (found.splits[split].content[there] != cache.splits[split].content[own]).any():
                return None
        except CacheError:  # damaged
            return None
        held[part] = CachedMaps(split=found.splits[split], rows=there, has_views=bool(found.encoder["views"]))
    return held


def split_of(part: str, rows: Rows) -> str:
    """The split of a cache that the rows of train, val or test are in."""
    return "train" if part == "val" and not rows.own_validation else part


def _has_views(cache: Cache, augmentation: Augmentation | None, needs_views: bool) -> bool:
    views = cache.encoder["views"]
    if augmentation is None:
        return bool(views) or not needs_views
    asked = augmentation.to_json()
    return bool(views) and views["views"] >= asked["views"] and {**views, "views": asked["views"]} == asked


def _rows_held(split: CachedSplit, ids: Sequence[str]) -> Labels | None:
    """The rows of these ids, in their order; None unless all are there and have features."""
    at = {name: row for row, name in enumerate(split.ids)}
    if not all(name in at for name in ids):
        return None
    found: NDArray[np.int64] = np.array([at[name] for name in ids], np.int64)
    return None if split.status[found].any() else found
