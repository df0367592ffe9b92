"""Rows of a data set in; its images in batches out, decoded once where they fit in memory, augmented on the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featcache.common.errors import UserError
from featcache.sources.batches import Batch, BatchReader
from featcache.sources.image_sets import Images
from featcache.sources.preprocessing import Preprocessing
from finetune.image_augmentation import Chance, augmented
from finetune.map_source import MapSource
from finetune.settings import Augment
from finetune.share import WHOLE, Share
from finetune.sources import Labels, Source

#: Images that take no more than this, resized, as 8-bit pixels, are decoded once and kept. Others are decoded anew in
#: every epoch, ahead of the training, by threads.
KEPT_BYTES = 1 << 30
_READ_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The images of a data set's splits as a network takes them, and the digests that their bytes must have.

    Attributes:
        images: by split.
        content: (N, 16) uint8 digests by split.
        preprocessing: how they become squares.
        workers: threads that read ahead.
    """

    images: Mapping[str, Images]
    content: Mapping[str, NDArray[np.uint8]]
    preprocessing: Preprocessing
    workers: int = 0

    def read(self, groups: Sequence[tuple[str, Labels]], *, pin: bool = False) -> Iterator[Tensor]:
        """For each split and its row numbers, in order, (n, 1 or 3, S, S) uint8.

        Raises:
            UserError: an image can't be decoded, or its bytes are not those that were embedded.
        """
        reader = BatchReader(
            images=self.images,
            content=self.content,
            groups=groups,
            preprocessing=self.preprocessing,
            augmentation=None,
        )
        for batch in reader.batches(workers=self.workers, pin_memory=pin):
            _refuse_changed(batch)
            yield batch.images[:, 0]


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageSource:
    """A `Source` of images, from the first stage on, which may know what frozen stages made of them.

    Attributes:
        pictures: where the images come from.
        splits, rows: (N,) each row's split and its number there.
        labels: (N,) int64.
        device: where batches go.
        augment: what training batches go through.
        maps: what the first stages made of the rows, which phases are given that keep these stages frozen.
    """

    pictures: Pictures
    splits: Sequence[str]
    rows: Labels
    labels: Labels
    device: torch.device
    augment: Augment = "none"
    maps: MapSource | None = None
    cut: int = field(default=0, init=False)

    def serving(self, cut: int) -> Source:
        return self.maps if self.maps is not None and self.maps.cut <= cut else self

    def batches(self, rows: Sequence[Labels], *, augment: bool, share: Share = WHOLE) -> Iterator[Tensor]:
        places = [share.places(len(numbers)) for numbers in rows]
        mine = [numbers[at] for numbers, at in zip(rows, places, strict=True)]
        stream = self._kept_batches(mine) if self.fits else self._read_batches(mine)
        for images, numbers, at in zip(stream, rows, places, strict=True):
            there = images.to(self.device, non_blocking=True)
            if augment:
                there = augmented(there, self.augment, chance=Chance(n_rows=len(numbers), places=at))
            yield self.pictures.preprocessing.normalise(there)

    @property
    def fits(self) -> bool:
        """Whether the images are kept in memory."""
        return len(self.rows) * 3 * self.pictures.preprocessing.image_size**2 <= KEPT_BYTES

    @cached_property
    def kept(self) -> Tensor:
        """(N, 1 or 3, S, S) uint8 of all rows."""
        numbers = np.arange(len(self.rows))
        groups = np.array_split(numbers, -(-len(numbers) // _READ_AT_ONCE))
        return _joined(list(self._read_batches(groups, pin=False)))

    def joined(self, other: ImageSource) -> ImageSource:
        """The rows of this and then of another source of the same pictures."""
        assert self.pictures is other.pictures
        both = ImageSource(
            pictures=self.pictures,
            splits=[*self.splits, *other.splits],
            rows=np.concatenate([self.rows, other.rows]),
            labels=np.concatenate([self.labels, other.labels]),
            device=self.device,
            augment=self.augment,
            maps=None if self.maps is None or other.maps is None else self.maps.joined(other.maps),
        )
        if both.fits and "kept" in self.__dict__ and "kept" in other.__dict__:
            both.__dict__["kept"] = _joined([self.kept, other.kept])  # as cached_property keeps it
        return both

    def _kept_batches(self, rows: Sequence[Labels]) -> Iterator[Tensor]:
        for numbers in rows:
            yield self.kept[torch.from_numpy(numbers)]

    def _read_batches(self, rows: Sequence[Labels], *, pin: bool | None = None) -> Iterator[Tensor]:
        """Each batch read in one piece, or in one a split where it has rows of several."""
        names = np.asarray(self.splits)
        present = list(dict.fromkeys(self.splits))
        places = [[(name, np.flatnonzero(names[numbers] == name)) for name in present] for numbers in rows]
        groups = [
            (name, self.rows[numbers[at]])
            for numbers, parts in zip(rows, places, strict=True)
            for name, at in parts
            if len(at)
        ]
        stream = self.pictures.read(groups, pin=self.device.type == "cuda" if pin is None else pin)
        for parts in places:
            used = [at for _, at in parts if len(at)]
            images = [next(stream) for _ in used]
            if len(images) == 1:
                yield images[0]
                continue
            back = np.argsort(np.concatenate(used), kind="stable")
            yield _joined(images)[torch.from_numpy(back)]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """One after the other, channels last in memory, grey ones among coloured expanded."""
    channels = max(part.shape[1] for part in parts)
    expanded = [part.expand(-1, channels, -1, -1).permute(0, 2, 3, 1) for part in parts]
    return torch.cat(expanded).permute(0, 3, 1, 2)


def _refuse_changed(batch: Batch) -> None:
    if batch.changed is not None:
        raise UserError(
            f"image {batch.changed} of {batch.split} changed since it was embedded: run the same bin/embed again"
        )
    if batch.damaged:
        position, message = next(iter(batch.damaged.items()))
        raise UserError(f"image {batch.rows[position]} of {batch.split}: {message}; run the same bin/embed again")
