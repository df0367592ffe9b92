"""Images in, batches of one size out, in order, decoded and resized by worker processes where there are any."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featcache.datasets import Images
from featcache.preprocessing import Preprocessing


@dataclass(frozen=True)
class Batch:
    """Rows ``start`` to ``stop`` of a split.

    Attributes:
        images: (stop - start, 1 or 3, S, S) uint8.
        damaged: why rows could not be decoded, by row; their pixels are black.
        changed: the first row whose bytes are not those that were announced, or None.
    """

    split: str
    start: int
    stop: int
    images: Tensor
    damaged: dict[int, str]
    changed: int | None


@dataclass(frozen=True, kw_only=True)
class BatchReader(torch.utils.data.Dataset[Batch]):
    """Reads ``ranges`` (split, first row, the one after the last) of ``images``, whose digests must be ``content``."""

    images: Mapping[str, Images]
    content: Mapping[str, NDArray[np.uint8]]
    ranges: tuple[tuple[str, int, int], ...]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.ranges)

    def __getitem__(self, index: int) -> Batch:
        split, start, stop = self.ranges[index]
        read = self.images[split].read(range(start, stop))
        changed = np.flatnonzero((read.digests != self.content[split][start:stop]).any(axis=1))
        return Batch(
            split=split,
            start=start,
            stop=stop,
            images=self.preprocessing.fit(read.pixels),
            damaged={start + position: message for position, message in read.damaged.items()},
            changed=start + int(changed[0]) if len(changed) else None,
        )

    def batches(self, *, workers: int, pin_memory: bool) -> Iterator[Batch]:
        """All batches in order; ``workers`` processes read ahead, none reads in this one."""
        loader = torch.utils.data.DataLoader(
            self, batch_size=None, num_workers=workers, pin_memory=pin_memory, collate_fn=_as_is
        )
        return iter(loader)


def _as_is(batch: Any) -> Any:
    return batch
