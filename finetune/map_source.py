"""Rows of a cache of maps in; the maps in batches out, as the frozen stages gave them: read once where they fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featcache.cache.split import CachedSplit
from finetune.share import WHOLE, Share
from finetune.sources import Labels, Source

#: Maps of a part that take no more than this, as they are stored, are read once and kept. Others are compared with
#: their checksums once and read from the file, which is mapped, whenever they are asked for.
KEPT_BYTES = 1 << 30


@dataclass(frozen=True, eq=False, kw_only=True)
class CachedMaps:
    """Rows of a split of a cache.

    Attributes:
        split: of the cache.
        rows: (N,) int64, their numbers in it.
        has_views: whether a row has views, the plain one first.
    """

    split: CachedSplit
    rows: Labels
    has_views: bool

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, numbers: Labels, views: Labels) -> NDArray[Any]:
        """A view of each of some rows, counted from 0 among these here: (n, ...) in the type of the file."""
        values, rows = self._values
        taken: NDArray[Any] = values[rows[numbers], views] if self.has_views else values[rows[numbers]]
        return taken

    @cached_property
    def _values(self) -> tuple[NDArray[Any], Labels]:
        """What rows are taken of, and where in it they lie. Raises CacheError for damage."""
        stored = self.split.stored["features"]
        if len(self.rows) * stored.row_bytes <= KEPT_BYTES:
            return self.split.read(self.rows), np.arange(len(self.rows))
        for _ in self.split.blocks("features", np.unique(self.rows // self.split.block_rows).tolist()):
            pass  # each is compared with its checksum
        return self.split.features, self.rows


@dataclass(frozen=True, eq=False, kw_only=True)
class MapSource:
    """A `Source` of what the first stages made of each image.

    Attributes:
        parts: the rows, those of one split after those of another.
        labels: (N,) int64.
        cut: how many stages were run.
        n_views: training batches have any of the first so many views of a row, drawn evenly; others the plain one.
        order: of the dimensions in memory, as the stages give it, the outermost first.
        device: where batches go.
    """

    parts: tuple[CachedMaps, ...]
    labels: Labels
    cut: int
    n_views: int
    order: tuple[int, ...]
    device: torch.device

    def __post_init__(self) -> None:
        assert sum(map(len, self.parts)) == len(self.labels)
        assert self.n_views == 1 or all(part.has_views for part in self.parts)

    def serving(self, cut: int) -> Source:
        """Itself: there is nothing to serve a lower cut with."""
        assert self.cut <= cut, (self.cut, cut)
        return self

    def batches(self, rows: Sequence[Labels], *, augment: bool, share: Share = WHOLE) -> Iterator[Tensor]:
        """As a `Source` gives them. Raises CacheError where the file is damaged."""
        for numbers in rows:
            views = np.zeros(len(numbers), np.int64)
            if augment and self.n_views > 1:
                views = torch.randint(self.n_views, (len(numbers),)).numpy()
            at = share.places(len(numbers))
            yield self._in_order(torch.from_numpy(self._taken(numbers[at], views[at])).to(self.device))

    def joined(self, other: MapSource) -> MapSource:
        """The rows of this and then of another source of the same stages."""
        assert (self.cut, self.order) == (other.cut, other.order)
        return MapSource(
            parts=(*self.parts, *other.parts),
            labels=np.concatenate([self.labels, other.labels]),
            cut=self.cut,
            n_views=self.n_views,
            order=self.order,
            device=self.device,
        )

    def _taken(self, numbers: Labels, views: Labels) -> NDArray[Any]:
        if len(self.parts) == 1:
            return self.parts[0].take(numbers, views)
        first, taken = 0, None
        for part in self.parts:
            at = np.flatnonzero((numbers >= first) & (numbers < first + len(part)))
            values = part.take(numbers[at] - first, views[at])
            if taken is None:
                taken = np.empty((len(numbers), *values.shape[1:]), values.dtype)
            taken[at] = values
            first += len(part)
        assert taken is not None
        return taken

    def _in_order(self, maps: Tensor) -> Tensor:
        """In float32, and in the stages' own memory order: the next stage's last bits depend on it."""
        back = [self.order.index(dimension) for dimension in range(maps.ndim)]
        return maps.float().permute(self.order).contiguous().permute(back)
