"""Compare two caches: their encoders, their data, and the features of their common rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.cache import file_format
from featcache.cache.cache_file import Cache
from featcache.cache.split import CachedSplit
from featcache.common.hashing import Fields, differing_fields

#: Features of both sides are read so many bytes at a time.
_CHUNK_BYTES = 1 << 25


@dataclass(frozen=True)
class SplitDifferences:
    """How the rows of one split differ; ``only_a`` and the like are ids, in the file's order.

    Attributes:
        common: rows with the same id and content on both sides.
        only_a, only_b: ids of one side alone.
        other_content, other_label: ids of both sides whose image, or whose class, is another one.
        largest: max over common rows of ||a - b|| / ||b||; None where there are no features to compare.
        compared: common rows that have features on both sides.
    """

    common: int
    only_a: list[str]
    only_b: list[str]
    other_content: list[str]
    other_label: list[str]
    largest: float | None
    compared: int

    @property
    def same_rows(self) -> bool:
        return not (self.only_a or self.only_b or self.other_content or self.other_label)


@dataclass(frozen=True)
class Differences:
    """How two caches differ.

    Attributes:
        encoder, data: by dotted name, the values of both sides where they differ.
        splits: by name, of those that both sides have.
    """

    encoder: Fields
    data: Fields
    splits: dict[str, SplitDifferences]

    @property
    def none(self) -> bool:
        """Whether encoder, data and rows are the same; features may differ by where they were computed."""
        return not self.encoder and not self.data and all(split.same_rows for split in self.splits.values())

    def to_json(self) -> dict[str, Any]:
        """As JSON; ``largest`` is None, too, where it is beyond all numbers."""
        told = {**asdict(self), "same": self.none}
        for split in told["splits"].values():
            split["largest"] = None if split["largest"] == np.inf else split["largest"]
        return told


def compare_caches(a: Cache, b: Cache) -> Differences:
    """Compare two finished caches.

    Raises:
        CacheError: a block that was read does not match its checksum.
    """
    return Differences(
        encoder=differing_fields(a.encoder, b.encoder),
        data=differing_fields(_data(a), _data(b)),
        splits={name: _compare_splits(a, b, name) for name in a.splits if name in b.splits},
    )


def _data(cache: Cache) -> dict[str, Any]:
    source = {key: value for key, value in cache.provenance["source"].items() if key not in ("dataset", "notes")}
    return {
        "dataset": cache.dataset,
        "source": source,
        "class_names": list(cache.class_names),
        "rows": {name: len(split) for name, split in cache.splits.items()},
    }


def _compare_splits(a: Cache, b: Cache, name: str) -> SplitDifferences:
    one, other = a.splits[name], b.splits[name]
    places = {row_id: row for row, row_id in enumerate(other.ids)}
    pairs = [(row, places[row_id]) for row, row_id in enumerate(one.ids) if row_id in places]
    rows = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    same_content = (one.content[rows[:, 0]] == other.content[rows[:, 1]]).all(axis=1)
    same_label = _classes(a, name)[rows[:, 0]] == _classes(b, name)[rows[:, 1]]
    here = set(one.ids)
    common = rows[same_content]
    largest, compared = _largest_difference(one, other, common)
    return SplitDifferences(
        common=len(common),
        only_a=[row_id for row_id in one.ids if row_id not in places],
        only_b=[row_id for row_id in other.ids if row_id not in here],
        other_content=[one.ids[row] for row in rows[~same_content, 0].tolist()],
        other_label=[one.ids[row] for row in rows[~same_label, 0].tolist()],
        largest=largest,
        compared=compared,
    )


def _classes(cache: Cache, name: str) -> NDArray[Any]:
    """The class of each row by name, since the same number may mean another class on the other side."""
    labels = cache.splits[name].labels
    numbers, places = np.unique(labels, return_inverse=True)
    n_classes = len(cache.class_names)
    names = [cache.class_names[n] if 0 <= n < n_classes else f"\0{n}" for n in numbers.tolist()]
    return np.array(names, dtype=object)[places]


def _largest_difference(a: CachedSplit, b: CachedSplit, rows: NDArray[np.int64]) -> tuple[float | None, int]:
    """Over rows with features on both sides, the largest ||a - b|| / ||b||, and how many rows these are."""
    rows = rows[(a.status[rows[:, 0]] == file_format.OK) & (b.status[rows[:, 1]] == file_format.OK)]
    if a.row_shape != b.row_shape or not len(rows):
        return None, 0
    step = max(1, _CHUNK_BYTES // a.stored["features"].row_bytes)
    largest = 0.0
    for start in range(0, len(rows), step):
        chunk = rows[start : start + step]
        one, other = (
            split.load(chunk[:, side]).reshape(len(chunk), -1).astype(np.float64) for side, split in enumerate((a, b))
        )
        distance, norm = np.linalg.norm(one - other, axis=1), np.linalg.norm(other, axis=1)
        relative = np.divide(distance, norm, out=np.where(distance == 0, 0.0, np.inf), where=norm > 0)
        largest = max(largest, float(np.nan_to_num(relative, nan=np.inf, posinf=np.inf).max()))
    return largest, len(rows)
