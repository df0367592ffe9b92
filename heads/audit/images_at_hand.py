"""Rows of an audit and their images in; the images, small, and how far they are from one another, out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featcache.maintenance.image_provenance import OriginalImages
from featcache.sources.decoding import Pixels
from heads.audit.audited_rows import AuditedRows
from heads.standardization import Floats

SIDE = 32  # of the squares that are compared

_FLOOR = 4.0  # grey levels: images flatter than this are compared as if they were not


@dataclass(frozen=True, eq=False, kw_only=True)
class ImagesAtHand:
    """The rows of an audit with their images, as far as they are there."""

    rows: AuditedRows
    originals: OriginalImages

    def pixels(self, wanted: Sequence[int]) -> Iterator[tuple[int, Pixels]]:
        """Each wanted row with its image, (H, W) or (H, W, 3) uint8; those gone, changed or damaged are passed over."""
        rows = self.rows
        keys = [(rows.split_of(row), rows.ids[row], rows.content[row].tobytes()) for row in wanted]
        for position, pixels in self.originals.pixels(keys):
            yield wanted[position], pixels

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
