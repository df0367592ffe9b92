"""Take a caller's paths, PIL images or arrays as images to embed, each with a name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from featcache.common.errors import UsageError, UserError
from featcache.common.files import one_line
from featcache.common.hashing import DIGEST_SIZE
from featcache.sources import decoding
from featcache.sources.decoding import DamagedImageError, Pixels, stack_digests
from featcache.sources.image_sets import ArrayImages, FileImages, Images, ReadImages
from featcache.tables.subset import row_numbers

#: Damaged images that a message names.
MAX_NAMED = 5

_EXPECTED = "expected paths, PIL images, or uint8 arrays (N, H, W) or (N, H, W, 3)"


@dataclass(frozen=True)
class DistinctImages:
    """Images of different contents.

    Attributes:
        images, names: of n.
        content: (n, 16) uint8 digests, ascending.
        back: (N,) int64, which of them each image is that was handed over.
    """

    images: Images
    names: tuple[str, ...]
    content: NDArray[np.uint8]
    back: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> DistinctImages:
        """Some of them, in ascending order: (m,) integers or (n,) booleans."""
        rows = row_numbers(rows, len(self.names), of="the list")
        names = tuple(self.names[row] for row in rows.tolist())
        return DistinctImages(self.images.take(rows), names, self.content[rows], np.arange(len(rows)))


@dataclass(frozen=True)
class HandedImages:
    """Images, and what to call each in a message: its path, or its position."""

    images: Images
    names: tuple[str, ...]

    def distinct(self) -> DistinctImages:
        """Each content once. Raises UserError where images can't be read."""
        content = self.images.digests()
        unread = np.flatnonzero(~content.any(axis=1)).tolist()
        if unread:
            reasons = self.images.read(unread[:MAX_NAMED]).damaged
            raise damaged({self.names[row]: reasons.get(place, "") for place, row in enumerate(unread)})
        keys = np.ascontiguousarray(content).view(f"V{DIGEST_SIZE}").reshape(-1)
        _, first, back = np.unique(keys, return_index=True, return_inverse=True)
        names = tuple(self.names[row] for row in first.tolist())
        return DistinctImages(self.images.take(first), names, content[first], back.reshape(-1))


def damaged(reasons: Mapping[str, str]) -> UserError:
    """The error for images without features, with why, by name; of many the first are named."""
    told = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:MAX_NAMED])
    more = f" (and {len(reasons) - MAX_NAMED:,} more)" if len(reasons) > MAX_NAMED else ""
    return UserError(f"{told}{more}; mend or remove {'them' if len(reasons) > 1 else 'it'}")


@dataclass(frozen=True)
class PictureImages:
    """PIL images, or arrays (H, W) or (H, W, 3) uint8, of any sizes.

    A PIL image is taken as a file of it would be: upright, on white where it is transparent, 16-bit grey scaled.
    """

    pictures: tuple[Image.Image | Pixels, ...]
    in_memory: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.pictures)

    def take(self, rows: NDArray[np.int64]) -> PictureImages:
        return PictureImages(tuple(self.pictures[row] for row in rows.tolist()))

    def digests(self) -> NDArray[np.uint8]:
        return stack_digests([_digest(picture) for picture in self.pictures])

    def read(self, rows: Sequence[int]) -> ReadImages:
        pixels, digests, damaged = [], [], {}
        for position, row in enumerate(rows):
            content, image = bytes(DIGEST_SIZE), np.zeros((1, 1), np.uint8)
            try:
                image = _pixels(self.pictures[row])
                content = decoding.pixels_digest(image)
            except DamagedImageError as error:
                damaged[position] = str(error)
            pixels.append(image)
            digests.append(content)
        return ReadImages(pixels, stack_digests(digests), damaged)


def handed_images(X: Any) -> HandedImages:
    """Tell what was handed over; nothing is decoded yet.

    Args:
        X: a list, array or pandas column of N paths, a list of PIL images, a list of arrays (H, W) or (H, W, 3) uint8,
            or an array (N, H, W), (N, H, W, 1) or (N, H, W, 3) uint8.

    Raises:
        UsageError: anything else, or nothing.
    """
    if isinstance(X, (str, os.PathLike, Image.Image)):
        raise UsageError(f"got one image, not a list of them: put {_short(X)} in a list")
    if hasattr(X, "to_numpy"):  # a column of pandas or polars
        X = X.to_numpy()
    if isinstance(X, np.ndarray) and X.dtype.kind not in "OU":
        return _of_array(X)
    if isinstance(X, np.ndarray):
        if X.ndim == 2 and X.shape[1] == 1:
            X = X[:, 0]
        if X.ndim != 1:
            raise UsageError(f"got an array of {X.dtype} of shape {X.shape}; expected one column of paths")
    elif not isinstance(X, (list, tuple)):
        raise UsageError(f"got {type(X).__name__}; {_EXPECTED}")
    items = list(X)
    if not items:
        raise UsageError(f"got no images; {_EXPECTED}")
    if all(isinstance(item, (str, os.PathLike)) for item in items):
        return _of_paths([os.fspath(item) for item in items])
    return _of_pictures(items)


def _of_array(X: NDArray[Any]) -> HandedImages:
    if X.ndim == 4 and X.shape[3] == 1:
        X = X[..., 0]
    if not len(X) or X.dtype != np.uint8 or not _is_picture(X.shape[1:]):
        mend = ""
        if X.ndim == 4 and X.shape[1] == 3:
            mend = "; channels come last: X.transpose(0, 2, 3, 1)"
        elif X.dtype != np.uint8 and _is_picture(X.shape[1:]):
            mend = "; scale the pixels to 0..255 and convert them with astype('uint8')"
        raise UsageError(f"got an array of {X.dtype} of shape {X.shape}; {_EXPECTED}{mend}")
    return HandedImages(ArrayImages(X), _numbered(len(X)))


def _of_paths(paths: Sequence[str]) -> HandedImages:
    absolute = [Path(path).absolute() for path in paths]  # as names alone: what ".." leads to may go through a link
    root = os.path.commonpath([path.parent for path in absolute])
    names = tuple(path.relative_to(root).as_posix() for path in absolute)
    return HandedImages(FileImages(Path(root), names), tuple(paths))


def _of_pictures(items: Sequence[Any]) -> HandedImages:
    pictures: list[Image.Image | Pixels] = []
    for position, item in enumerate(items):
        if isinstance(item, np.ndarray) and (item.dtype != np.uint8 or not _is_picture(item.shape)):
            told = f"an array of {item.dtype} of shape {item.shape}"
            raise UsageError(f"image {position} is {told}; expected uint8 (H, W) or (H, W, 3)")
        if not isinstance(item, (np.ndarray, Image.Image)):
            raise UsageError(
                f"image {position} is {_short(item)}, of type {type(item).__name__}; {_EXPECTED}, of one kind"
            )
        pictures.append(item)
    return HandedImages(PictureImages(tuple(pictures)), _numbered(len(pictures)))


def _is_picture(shape: tuple[int, ...]) -> bool:
    """Whether an array of this shape is one grey or RGB image."""
    return len(shape) in (2, 3) and 0 not in shape and (len(shape) == 2 or shape[2] == 3)


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"image {i}" for i in range(count))


def _digest(picture: Image.Image | Pixels) -> bytes:
    try:
        return decoding.pixels_digest(_pixels(picture))
    except DamagedImageError:
        return bytes(DIGEST_SIZE)


def _pixels(picture: Image.Image | Pixels) -> Pixels:
    """Raises DamagedImageError, as of a file that was opened and is cut off."""
    if isinstance(picture, np.ndarray):
        return picture
    try:
        return decoding.eight_bits(ImageOps.exif_transpose(picture), opened=picture)
    except DamagedImageError:
        raise
    except Exception as error:
        raise DamagedImageError(f"damaged: {one_line(error) or type(error).__name__}") from error


def _short(value: Any) -> str:
    return one_line(repr(value))[:80]
