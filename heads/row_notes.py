"""What was decided on rows and features in; sentences that tell the user of it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from featcache.cache.cache_file import Cache
from heads.cached_features import n_views, positions
from heads.joining import MatchedRows
from heads.standardization import Labels

_NAMES_TOLD = 5


def left_out(caches: Sequence[Cache], matched: MatchedRows) -> list[str]:
    """How many rows were left out, and why."""
    notes = []
    if matched.n_apart:
        notes.append(f"{matched.n_apart:,} rows are not in all caches and are left out")
    if matched.n_unusable:
        where = ("of the cache ", "") if len(caches) == 1 else ("", " in one of the caches")
        notes.append(f"{matched.n_unusable:,} rows {where[0]}have no features or no label{where[1]} and are left out")
    return notes


def leaks(content: Mapping[str, NDArray[np.uint8]]) -> list[str]:
    """A warning where images to be scored are, byte for byte, among those to be fitted on.

    Args:
        content: digests (N, 16) of the rows by split; all but test are fitted on.
    """
    fitted_on = [as_keys(digests) for split, digests in content.items() if split != "test"]
    test = as_keys(content["test"]) if "test" in content else np.empty(0, "S16")
    if not (n_shared := int(np.isin(test, np.concatenate(fitted_on)).sum())):
        return []
    are = "row is" if n_shared == 1 else "rows are"
    told = f"WARNING: {n_shared:,} of {len(test):,} test {are} byte for byte among those to fit on"
    return [f"{told}: no fair test; bin/audit names them, --exclude leaves them out"]


def as_keys(digests: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    """Each digest, (N, 16), as one value that can be sorted and compared, (N,)."""
    return np.ascontiguousarray(digests).view("S16").reshape(len(digests))


def told_features(caches: Sequence[Cache], plain: bool) -> list[str]:
    """What the features are: averages, columns of several caches, views."""
    notes, told = [], []
    several_engines = len({cache.encoder["engine"] for cache in caches}) > 1
    for cache in caches:
        row = cache.splits["train"].row_shape[1 if cache.encoder["views"] else 0 :]
        where = positions(row) if not cache.holds_vectors else ()
        columns = next(length for axis, length in enumerate(row) if axis not in where)
        what = f"{cache.encoder['backbone']} after {cache.encoder['cut']}"
        by = f" by {cache.encoder['engine']}" if several_engines else ""
        told.append(f"{what}{by} ({columns:,})")
        if where:
            sides = [" x ".join(str(row[axis]) for axis in axes) for axes in (range(len(row)), where)]
            notes.append(
                f"the maps of {what}, {sides[0]}, are averaged over their {sides[1]} positions: {columns:,} features"
            )
    if len(caches) > 1:
        notes.insert(0, f"features of {len(caches)} caches side by side, joined by id and content: {', '.join(told)}")
    if views := max(n_views(cache) for cache in caches) - 1:
        if not plain:
            take = f"train on all of them, each counting 1 / {1 + views}, and average at test time"
        elif len({str(cache.encoder["views"]) for cache in caches}) > 1:
            take = "take the plain one, since the caches have different ones"
        else:
            take = "take the plain one"
        notes.append(f"{views} augmented views of each image are in the cache; heads {take}")
    return notes


def classes_without(labels: Labels, split: str, class_names: Sequence[str]) -> list[str]:
    """A note on the classes that have no rows in a split."""
    missing = np.flatnonzero(np.bincount(labels, minlength=len(class_names)) == 0).tolist()
    if not missing:
        return []
    more = f" and {len(missing) - _NAMES_TOLD:,} more" if len(missing) > _NAMES_TOLD else ""
    named = ", ".join(class_names[label] for label in missing[:_NAMES_TOLD]) + more
    outcome = "their recall is not known" if split == "test" else "a choice by validation rows knows nothing of them"
    return [f"classes without {split} rows: {named}, {outcome}"]
