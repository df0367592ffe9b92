"""Batch images of one size, in order, decoded and resized ahead by threads if there are any."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featcache.common.prefetch import read_ahead
from featcache.sources.augmented_views import Augmentation
from featcache.sources.decoding import Pixels
from featcache.sources.image_sets import Images, ReadImages
from featcache.sources.preprocessing import Preprocessing

#: Decoded files are resized together up to so many bytes, so that small ones share a call and large ones no memory.
_TOGETHER = 1 << 20


@dataclass(frozen=True)
class Batch:
    """Some rows of a split.

    Attributes:
        split: its name.
        rows: (n,) indices, ascending.
        images: (n, V, 1 or 3, S, S) uint8, each view channels last in memory: the plain view first, then the augmented
            ones.
        damaged: why images could not be decoded, by position; their pixels are black.
        changed: the first row whose bytes are not those that were announced, or None.
        seconds: what it took: ``decode`` for reading, hashing and decoding, ``resize`` for resizing, cropping and
            views. Batches that are read at the same time take their time each.
    """

    split: str
    rows: NDArray[np.int64]
    images: Tensor
    damaged: dict[int, str]
    changed: int | None
    seconds: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class BatchReader:
    """Reads ``groups`` (split, rows) of ``images``, whose digests must be ``content``."""

    images: Mapping[str, Images]
    content: Mapping[str, NDArray[np.uint8]]
    groups: Sequence[tuple[str, NDArray[np.int64]]]
    preprocessing: Preprocessing
    augmentation: Augmentation | None

    def __len__(self) -> int:
        return len(self.groups)

    def batches(self, *, workers: int, pin_memory: bool) -> Iterator[Batch]:
        """All batches in order.

        ``workers`` threads read them ahead, at most ``workers + 1`` at a time (see ``read_ahead``); with 0 each is read
        when it is asked for. With ``pin_memory`` a GPU can fetch them while it computes.
        """

        def read(group: tuple[str, NDArray[np.int64]], stop: threading.Event) -> Batch:
            return self._read(*group, pin_memory, stop)

        return read_ahead(read, self.groups, workers=workers)

    def _read(self, split: str, rows: NDArray[np.int64], pin_memory: bool, stop: threading.Event) -> Batch:
        read = read_views(self.images[split], rows, self.preprocessing, self.augmentation, stop)
        changed = np.flatnonzero((read.digests != self.content[split][rows]).any(axis=1))
        return Batch(
            split=split,
            rows=rows,
            images=read.images.pin_memory() if pin_memory else read.images,
            damaged=read.damaged,
            changed=int(rows[changed[0]]) if len(changed) else None,
            seconds=read.seconds,
        )


@dataclass(frozen=True)
class ReadViews:
    """Some rows of ``images`` as the network sees them.

    Attributes:
        images: (n, V, 1 or 3, S, S) uint8, as in `Batch`.
        digests: (n, 16) uint8 of their bytes; zeros where they can't be read.
        damaged, seconds: as in `Batch`.
    """

    images: Tensor
    digests: NDArray[np.uint8]
    damaged: dict[int, str]
    seconds: Mapping[str, float]


def read_views(
    source: Images,
    rows: NDArray[np.int64],
    preprocessing: Preprocessing,
    augmentation: Augmentation | None,
    stop: threading.Event,
) -> ReadViews:
    """Read, decode and resize some rows. Raises CancelledError where ``stop`` is set meanwhile."""
    parts: list[Tensor] = []
    digests: list[NDArray[np.uint8]] = []
    damaged: dict[int, str] = {}
    seconds = {"decode": 0.0, "resize": 0.0}
    done = 0
    while done < len(rows):
        begun = perf_counter()
        read = _read_some(source, rows[done:], stop)
        decoded = perf_counter()
        parts.append(views(read.pixels, read.digests, preprocessing, augmentation))
        seconds["decode"] += decoded - begun
        seconds["resize"] += perf_counter() - decoded
        digests.append(read.digests)
        damaged |= {done + position: message for position, message in read.damaged.items()}
        done += len(read.pixels)
    images = parts[0] if len(parts) == 1 else _concatenated(parts, axis=0)
    return ReadViews(images, np.concatenate(digests), damaged, seconds)


def _read_some(source: Images, rows: NDArray[np.int64], stop: threading.Event) -> ReadImages:
    """The first of these rows, at least one: as many as may be decoded before they are resized."""
    if source.in_memory:
        return source.read(rows.tolist())
    pixels: list[Pixels] = []
    digests: list[NDArray[np.uint8]] = []
    damaged: dict[int, str] = {}
    n_bytes = 0
    for position, row in enumerate(rows.tolist()):
        if stop.is_set():
            raise CancelledError
        read = source.read([row])
        pixels += read.pixels
        digests.append(read.digests)
        damaged |= {position + place: message for place, message in read.damaged.items()}
        n_bytes += read.pixels[0].nbytes
        if n_bytes >= _TOGETHER:
            break
    return ReadImages(pixels, np.concatenate(digests), damaged)


def views(
    pixels: Sequence[Pixels],
    digests: NDArray[np.uint8],
    preprocessing: Preprocessing,
    augmentation: Augmentation | None,
) -> Tensor:
    """What the network sees of each image, the plain view first.

    Returns:
        (N, V, 1 or 3, S, S) uint8, each view channels last in memory.
    """
    plain = preprocessing.fit(pixels)
    if augmentation is None:
        return plain[:, None]
    drawn = augmentation.draw(pixels, digests, preprocessing)
    return _concatenated([plain[:, None], drawn], axis=1)


def _concatenated(parts: Sequence[Tensor], *, axis: int) -> Tensor:
    """Views along an axis, channels last as they were (``torch.cat`` loses that), grey ones among coloured expanded."""
    channels = max(part.shape[2] for part in parts)
    arrays = [part.expand(-1, -1, channels, -1, -1).permute(0, 1, 3, 4, 2).numpy() for part in parts]
    return torch.from_numpy(np.ascontiguousarray(np.concatenate(arrays, axis=axis))).permute(0, 1, 4, 2, 3)
