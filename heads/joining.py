"""Caches of the same images in; which rows of each belong together, by id and content, out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featcache.cache import file_format
from featcache.cache.cache_file import Cache
from featcache.cache.split import CachedSplit
from featcache.common.errors import UsageError, UserError
from heads.standardization import Labels


@dataclass(frozen=True, eq=False, kw_only=True)
class MatchedRows:
    """The rows that all caches have, with features and a label, in the order of the first.

    Attributes:
        rows: by split, for each cache the numbers of its rows, int64 (N,); the same place is the same image.
        n_apart: images that not all caches have.
        n_unusable: images that all have, and one at least without features or label.
    """

    rows: dict[str, tuple[Labels, ...]]
    n_apart: int
    n_unusable: int


def match(caches: Sequence[Cache]) -> MatchedRows:
    """Find each image's row in every cache.

    Raises:
        UserError: a cache is named twice, has other classes or splits than the first, another image or label under the
            same id, or no image in common.
    """
    first, *others = caches
    for place, cache in enumerate(others, 1):
        _require_alike(first, cache)
        if cache.fingerprint in {before.fingerprint for before in caches[:place]}:
            raise UsageError(f"{cache.path}: its features are joined already; name each cache once")
    found, n_apart, n_unusable = {}, 0, 0
    for name in first.splits:
        splits = [cache.splits[name] for cache in caches]
        rows, apart = _common(splits)
        n_apart += apart
        if others and not len(rows[0]):
            named = ", ".join(str(cache.path) for cache in caches)
            raise UserError(f"{named}: no {name} image is in all of them; embed the same data set for each")
        for cache, own in zip(others, rows[1:], strict=True):
            _require_same_images(first, cache, name, rows[0], own)
        usable = np.ones(len(rows[0]), bool)
        for split, own in zip(splits, rows, strict=True):
            usable &= (split.status[own] == file_format.OK) & (split.labels[own] >= 0)
        n_unusable += int((~usable).sum())
        found[name] = tuple(own[usable] for own in rows)
    return MatchedRows(rows=found, n_apart=n_apart, n_unusable=n_unusable)


def _common(splits: Sequence[CachedSplit]) -> tuple[list[Labels], int]:
    """The rows of each split whose ids all have, in the order of the first, and how many ids not all have."""
    first, *others = splits
    if all(split.ids == first.ids for split in others):
        return [np.arange(len(first)) for _ in splits], 0
    places = [{name: row for row, name in enumerate(split.ids)} for split in others]
    common = [row for row, name in enumerate(first.ids) if all(name in place for place in places)]
    rows = [np.array(common, np.int64)]
    rows += [np.array([place[first.ids[row]] for row in common], np.int64) for place in places]
    return rows, len(set(first.ids).union(*places)) - len(common)


def _require_alike(first: Cache, cache: Cache) -> None:
    if cache.class_names != first.class_names:
        pairs = zip(cache.class_names, first.class_names, strict=False)
        differ = next((f"{a!r} where the other has {b!r}" for a, b in pairs if a != b), None)
        differ = differ or f"{len(cache.class_names)} of them, not {len(first.class_names)}"
        raise UserError(
            f"{cache.path}: has other classes than {first.path} ({differ}); embed the same data set for both"
        )
    if set(cache.splits) != set(first.splits):
        has, expected = ", ".join(cache.splits), ", ".join(first.splits)
        raise UserError(f"{cache.path}: has the splits {has}, and {first.path} has {expected}; embed the same for both")


def _require_same_images(first: Cache, cache: Cache, name: str, rows: Labels, own: Labels) -> None:
    """Refuse another image, or another label, under the same id, where both have features."""
    a, b = first.splits[name], cache.splits[name]
    both = (a.status[rows] == file_format.OK) & (b.status[own] == file_format.OK)
    if (other := both & (a.content[rows] != b.content[own]).any(axis=1)).any():
        image = a.ids[rows[other.argmax()]]
        raise UserError(
            f"{cache.path}: {name} image {image!r} has other bytes than in {first.path} ({int(other.sum()):,} images "
            "have); embed again what is older than the images"
        )
    labels, others = a.labels[rows], b.labels[own]
    if (other := both & (labels >= 0) & (others >= 0) & (labels != others)).any():
        at = other.argmax()
        image, names = a.ids[rows[at]], first.class_names
        raise UserError(
            f"{cache.path}: {name} image {image!r} is labelled {names[others[at]]!r}, in {first.path} "
            f"{names[labels[at]]!r}; embed again what is older than the labels"
        )
