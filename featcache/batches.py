"""Images in, batches of one size out, in order, decoded and resized by worker processes where there are any."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featcache.augmentation import Augmentation
from featcache.datasets import Images
from featcache.images import Pixels
from featcache.preprocessing import Preprocessing


@dataclass(frozen=True)
class Batch:
    """Some rows of a split.

    Attributes:
        split: its name.
        rows: (n,) indices, ascending.
        images: (n, V, 1 or 3, S, S) uint8: the plain view first, then the augmented ones.
        damaged: why images could not be decoded, by position; their pixels are black.
        changed: the first row whose bytes are not those that were announced, or None.
    """

    split: str
    rows: NDArray[np.int64]
    images: Tensor
    damaged: dict[int, str]
    changed: int | None


@dataclass(frozen=True, kw_only=True)
class BatchReader(torch.utils.data.Dataset[Batch]):
    """Reads ``groups`` (split, rows) of ``images``, whose digests must be ``content``."""

    images: Mapping[str, Images]
    content: Mapping[str, NDArray[np.uint8]]
    groups: Sequence[tuple[str, NDArray[np.int64]]]
    preprocessing: Preprocessing
    augmentation: Augmentation | None

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Batch:
        split, rows = self.groups[index]
        source = self.images[split]
        seen: list[Tensor] = []
        digests: list[NDArray[np.uint8]] = []
        damaged: dict[int, str] = {}
        # Files one by one: decoded, a batch of photographs may take gigabytes.
        for first, part in enumerate([rows] if source.in_memory else rows[:, None]):
            read = source.read(part.tolist())
            seen.append(views(read.pixels, read.digests, self.preprocessing, self.augmentation))
            digests.append(read.digests)
            damaged |= {first + position: message for position, message in read.damaged.items()}
        if len({part.shape[2] for part in seen}) > 1:
            seen = [part.expand(-1, -1, 3, -1, -1) for part in seen]
        changed = np.flatnonzero((np.concatenate(digests) != self.content[split][rows]).any(axis=1))
        return Batch(
            split=split,
            rows=rows,
            images=torch.cat(seen),
            damaged=damaged,
            changed=int(rows[changed[0]]) if len(changed) else None,
        )

    def batches(self, *, workers: int, pin_memory: bool) -> Iterator[Batch]:
        """All batches in order; ``workers`` processes read ahead, none reads in this one."""
        loader = torch.utils.data.DataLoader(
            self, batch_size=None, num_workers=workers, pin_memory=pin_memory, collate_fn=_as_is
        )
        return iter(loader)


def views(
    pixels: Sequence[Pixels],
    digests: NDArray[np.uint8],
    preprocessing: Preprocessing,
    augmentation: Augmentation | None,
) -> Tensor:
    """What the network sees of each image: (N, V, 1 or 3, S, S) uint8, the plain view first."""
    plain = preprocessing.fit(pixels)[:, None]
    if augmentation is None:
        return plain
    return torch.cat([plain, augmentation.draw(pixels, digests, preprocessing)], dim=1)


def _as_is(batch: Any) -> Any:
    return batch
