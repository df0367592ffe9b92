"""An encoded image's bytes in, its pixels out: 8-bit, grey or RGB, upright, on white where it was transparent."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featcache.layout import DIGEST_SIZE, digest

if TYPE_CHECKING:
    from PIL import Image

Pixels = NDArray[np.uint8]

#: File name endings that are taken for images, and the formats that may hide behind them (PPM: GTSRB).
SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"})
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")


class DamagedImageError(Exception):
    """The bytes are not a whole image of a supported format; the message says why in a few words."""


def pixels_digest(pixels: Pixels) -> bytes:
    """The content digest of an image that was never encoded: of its shape and pixels."""
    header = ",".join(map(str, pixels.shape)).encode()
    return digest(header + b":" + np.ascontiguousarray(pixels).tobytes())


def stack_digests(digests: list[bytes]) -> NDArray[np.uint8]:
    """(N, 16) uint8, a row a digest."""
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(len(digests), DIGEST_SIZE)


def read(path: Path) -> bytes:
    """The file's bytes. Raises DamagedImageError where it can't be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DamagedImageError(f"cannot be read: {error.strerror or error}") from error


def decode(data: bytes) -> Pixels:
    """Decode one image.

    EXIF orientation is applied; palettes and CMYK become RGB; transparency is laid on white; 16-bit grey is scaled to
    8 bits. Of several frames the first is taken.

    Args:
        data: a JPEG, PNG, WebP, BMP or TIFF file.

    Returns:
        (H, W) uint8 for grey images, (H, W, 3) uint8 for all others.

    Raises:
        DamagedImageError: not such a file, cut off, or of more pixels than Pillow's limit against decompression bombs.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not data:
        raise DamagedImageError("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata; the limit on pixels is an error, not a warning
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                image.load()
                return eight_bits(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise DamagedImageError("more pixels than the limit against decompression bombs") from error
    except UnidentifiedImageError as error:
        raise DamagedImageError("not a JPEG, PNG, WebP, BMP or TIFF image") from error
    except Exception as error:
        raise DamagedImageError(f"damaged: {' '.join(str(error).split()) or type(error).__name__}") from error


def eight_bits(image: Image.Image) -> Pixels:
    """A decoded Pillow image of any mode as (H, W) or (H, W, 3) uint8.

    Raises:
        DamagedImageError: floating-point pixels.
    """
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip
        wide = np.asarray(image).astype(np.int64)
        return np.clip((wide + 128) // 257, 0, 255).astype(np.uint8)
    if image.mode == "F":
        raise DamagedImageError("floating-point pixels have no agreed range: save it with 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))
    return np.asarray(image.convert("RGB"))
