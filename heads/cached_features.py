"""Rows of a cache in; their vectors or averaged maps as `Features` out, read anew each time that they are asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.cache.cache_file import Cache
from featcache.cache.split import THREAD_BYTES, CachedSplit
from heads.features import Addressed, as_slice
from heads.standardization import Floats, Labels


@dataclass(frozen=True, eq=False)
class CachedFeatures(Addressed):
    """Rows of a cache's split, read and checked each time they are asked for, a stored block at a time.

    A block holds 256 KiB or one map, so that any number of rows streams. Rows may be asked for in any order, but far
    faster in ascending order, in which each stored block is read once.

    Attributes:
        split: of rows (D,) or maps, with views (V, D) or (V, ...).
        views: V, or 1 where the cache has none.
        pool: whether maps are averaged over their positions; without it rows are vectors.
    """

    split: CachedSplit
    views: int = 1
    pool: bool = False

    @property
    def stored_views(self) -> int:
        return self.views

    @property
    def stored_shape(self) -> tuple[int, int]:
        row = self.cell_shape
        kept = [length for axis, length in enumerate(row) if axis not in positions(row)] if self.pool else list(row)
        assert len(kept) == 1, "maps without pool=True"
        return len(self.split), kept[0]

    @property
    def store(self) -> object:
        return id(self.split), self.views, self.pool

    @property
    def cell_shape(self) -> tuple[int, ...]:
        """Of one view of one image in the file."""
        return self.split.row_shape[1:] if self.views > 1 else self.split.row_shape

    def read(self, cells: Labels, out: Floats, *, threads: int = 1) -> None:
        if not len(cells):
            return
        order = None if (cells[1:] >= cells[:-1]).all() else np.argsort(cells, kind="stable")
        ordered = cells if order is None else cells[order]
        block_cells = self.split.block_rows * self.views
        numbers, first = np.unique(ordered // block_cells, return_index=True)
        bounds = np.append(first, len(ordered))

        def work(wanted: range) -> None:
            blocks = self.split.blocks("features", numbers[wanted.start : wanted.stop].tolist())
            for i, (number, stored) in zip(wanted, blocks, strict=True):
                here = slice(bounds[i], bounds[i + 1])
                found = stored.reshape(-1, *self.cell_shape)[as_slice(ordered[here] - number * block_cells)]
                out[here if order is None else order[here]] = pooled(found) if self.pool else found

        n_bytes = len(numbers) * self.split.block_rows * self.split.stored["features"].row_bytes
        threads = min(threads, os.cpu_count() or 1, 1 + n_bytes // THREAD_BYTES)
        if threads == 1:
            work(range(len(numbers)))
            return
        cuts = [len(numbers) * i // threads for i in range(threads + 1)]
        with ThreadPoolExecutor(threads) as pool:  # reading, checking and converting all let other threads run
            list(pool.map(work, map(range, cuts, cuts[1:])))


def features_of(cache: Cache, split: str, rows: Labels) -> CachedFeatures:
    """Some rows of a cache's split in all their views, maps averaged over their positions."""
    views = n_views(cache)
    return CachedFeatures(cache.splits[split], views, not cache.holds_vectors, cells=rows * views)


def n_views(cache: Cache) -> int:
    """Views of each image in a cache, the plain one included."""
    told: Mapping[str, Any] | int = cache.encoder["views"]
    return 1 + int(told["views"]) if isinstance(told, Mapping) else 1


def positions(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Which axes of one image's map are positions, and not channels.

    Images are square, so in (C, H, W) the last two axes are as long, and in the (H, W, C) that Swin keeps the first
    two; where all are as long, it is (C, H, W). In (L, C), the tokens of a ViT, the first axis is.
    """
    if len(shape) == 3:
        return (0, 1) if shape[0] == shape[1] != shape[2] else (1, 2)
    return (0,) if len(shape) == 2 else ()


def pooled(maps: NDArray[Any]) -> Floats:
    """The average of each map over its positions, float32 (n, C), of (n, C, H, W), (n, H, W, C) or (n, L, C)."""
    axes = tuple(1 + axis for axis in positions(maps.shape[1:]))
    whole = maps.astype(np.float32, copy=False)
    return whole.mean(axis=axes) if axes else whole
