"""A cache in; its images, where they still are and still have the bytes that were embedded, out: as small pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featcache.cache import Cache
from featcache.datasets import ImageDataset
from featcache.images import Pixels
from featcache.origin import original_images
from heads.audit.audited_rows import AuditedRows
from heads.standardization import Floats

SIDE = 32  # of the squares that are compared

_AT_ONCE = 64  # images decoded before they are let go
_FLOOR = 4.0  # grey levels: images flatter than this are compared as if they were not


@dataclass(frozen=True, eq=False, kw_only=True)
class ImagesAtHand:
    """The data set that rows were embedded from, and where each of its ids is now."""

    rows: AuditedRows
    dataset: ImageDataset
    at: dict[str, dict[str, int]]

    def pixels(self, wanted: Sequence[int]) -> Iterator[tuple[int, Pixels]]:
        """Each wanted row with its image, (H, W) or (H, W, 3) uint8; those gone, changed or damaged are passed over."""
        by_split: dict[str, list[tuple[int, int]]] = {}
        for row in wanted:
            own, name = self.rows.split_of(row), self.rows.ids[row]
            order = (own, *(split for split in self.at if split != own))
            split = next((split for split in order if name in self.at.get(split, ())), None)
            if split is not None:
                by_split.setdefault(split, []).append((row, self.at[split][name]))
        for split, pairs in by_split.items():
            images = self.dataset.splits[split].images
            for start in range(0, len(pairs), _AT_ONCE):
                part = pairs[start : start + _AT_ONCE]
                read = images.read([number for _, number in part])
                for place, (row, _) in enumerate(part):
                    same = bool((read.digests[place] == self.rows.content[row]).all())
                    if same and place not in read.damaged:
                        yield row, read.pixels[place]

    def distances(self, first: Sequence[int], second: Sequence[int]) -> Floats:
        """The `pixel_distance` of pairs of rows, float32 (P,); NaN where an image is not there."""
        squares = {row: square(pixels) for row, pixels in self.pixels(sorted({*first, *second}))}
        return np.array(
            [
                pixel_distance(squares[a], squares[b]) if a in squares and b in squares else np.nan
                for a, b in zip(first, second, strict=True)
            ],
            np.float32,
        )


def images_at_hand(cache: Cache, rows: AuditedRows) -> ImagesAtHand:
    """Find the data set again. Raises UserError where it is not there."""
    dataset = original_images(cache)
    at = {name: {row: i for i, row in enumerate(split.ids)} for name, split in dataset.splits.items()}
    return ImagesAtHand(rows=rows, dataset=dataset, at=at)


def square(pixels: Pixels) -> NDArray[np.uint8]:
    """An image as `SIDE` x `SIDE` x 3, each the average of its part of the image, whatever the image's shape."""
    from PIL import Image

    small = Image.fromarray(pixels).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small)


def pixel_distance(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """The root mean square of the difference of two squares, by that of their own deviations from their means.

    0 for the same pixels, near 1.4 for two that have nothing to do with each other. An image and its mirror image count
    as the same.
    """
    x, y = a.astype(np.float32), b.astype(np.float32)
    scale = float(np.sqrt((x.var() + y.var()) / 2 + _FLOOR**2))
    return min(float(np.sqrt(np.square(x - each).mean())) for each in (y, y[:, ::-1])) / scale
