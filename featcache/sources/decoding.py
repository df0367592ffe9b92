"""Decode an image's bytes to 8-bit pixels: grey or RGB, upright, on white if it was transparent.

Pillow decides what a file is and whether it is accepted. The pixels of plain JPEGs come from simplejpeg, which gives
the same ones sooner, and leaves to Pillow whatever it finds fault with (torchvision's decoder is as fast, but is to be
removed, and prints what it finds fault with). ``decode`` may run in several threads at once.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from featcache.common.files import one_line, open_regular, size_of
from featcache.common.hashing import DIGEST_SIZE, digest

if TYPE_CHECKING:
    from PIL import Image

Pixels = NDArray[np.uint8]

#: File name endings that are taken for images, and the formats that may hide behind them (PPM: GTSRB).
SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"})
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")

#: The most bytes of an image file, and the most pixels of an image (Pillow's own limit against decompression bombs,
#: which any library in the process may lift).
MAX_FILE_BYTES = 256 << 20
MAX_PIXELS = 178_956_970

#: What turns files into pixels, as recorded with features; Pillow's pixels and simplejpeg's are the same wherever
#: both are built with libjpeg-turbo.
DECODER = "simplejpeg and pillow"

_CHUNK = 1 << 20
#: The EXIF tag that tells how the camera was held; 1 is upright.
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 0x0102  # of TIFF
_PILLOWS_MODULES = re.compile(r"PIL\.")
#: How files begin that are taken for images, and are none of the formats above.
_OTHERS = {b"GIF8": "a GIF", b"%PDF": "a PDF", b"\0\0\1\0": "an icon", b"8BPS": "a Photoshop file"}


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
    """The file's bytes. Raises DamagedImageError where it is no regular file, too large, or can't be read."""
    try:
        with _opened(path) as file:
            return file.read(size_of(file))
    except OSError as error:
        raise DamagedImageError(f"cannot be read: {error.strerror or error}") from error


def file_digest(path: Path) -> bytes:
    """The content digest of the file's bytes, without holding them all. Raises as `read` does."""
    hasher = hashlib.blake2b(digest_size=DIGEST_SIZE)  # as layout.digest
    try:
        with _opened(path) as file:
            left = size_of(file)
            while left and (chunk := file.read(min(left, _CHUNK))):
                hasher.update(chunk)
                left -= len(chunk)
    except OSError as error:
        raise DamagedImageError(f"cannot be read: {error.strerror or error}") from error
    return hasher.digest()


def _opened(path: Path) -> BinaryIO:
    file = open_regular(path)
    if (size := size_of(file)) > MAX_FILE_BYTES:
        file.close()
        raise DamagedImageError(f"a file of {size:,} bytes, above the limit of {MAX_FILE_BYTES:,} for an image")
    return file


def decode(data: bytes) -> Pixels:
    """Decode one image.

    EXIF orientation is applied; palettes and CMYK become RGB; transparency is laid on white; 12-bit and 16-bit grey is
    scaled to 8 bits. Of several frames the first is taken.

    Args:
        data: a JPEG, PNG, WebP, BMP or TIFF file.

    Returns:
        (H, W) uint8 for grey images, (H, W, 3) uint8 for all others; contiguous and writable.

    Raises:
        DamagedImageError: not such a file, cut off, of more pixels than `MAX_PIXELS` or Pillow's own limit, or its
            pixels have no agreed range (floating point, 32-bit or signed integers).
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not data:
        raise DamagedImageError("the file is empty")
    _hush_pillow()
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            pixels = _plain_jpeg(data, opened)
            if pixels is not None and opened.getexif().get(_ORIENTATION, 1) == 1:
                return pixels
            image: Image.Image = opened if pixels is None else Image.fromarray(pixels)
            image.load()
            image.info = opened.info
            ImageOps.exif_transpose(image, in_place=True)
            return eight_bits(image)
    except Image.DecompressionBombError as error:
        raise DamagedImageError(f"more pixels than the limit against decompression bombs, {MAX_PIXELS:,}") from error
    except UnidentifiedImageError as error:
        raise DamagedImageError(f"not a JPEG, PNG, WebP, BMP or TIFF image{_other(data)}") from error
    except DamagedImageError:
        raise
    except Exception as error:
        raise DamagedImageError(f"damaged: {one_line(error) or type(error).__name__}") from error


def _plain_jpeg(data: bytes, image: Image.Image) -> Pixels | None:
    """The pixels of a grey or RGB JPEG without the least flaw, as stored; None of anything else."""
    if image.format not in ("JPEG", "MPO") or image.mode not in ("L", "RGB"):
        return None
    import simplejpeg

    shape = (image.height, image.width, len(image.mode))
    try:
        # Room for what Pillow's limit let pass, and no more; strict: what libjpeg would warn of is an error.
        room = np.empty(shape, np.uint8)
        colours = "RGB" if image.mode == "RGB" else "GRAY"
        pixels: Pixels = simplejpeg.decode_jpeg(data, colorspace=colours, buffer=room, strict=True)
    except ValueError:
        return None
    if pixels.shape != shape:
        return None
    return pixels if image.mode == "RGB" else pixels[..., 0]


def _hush_pillow() -> None:
    """Ignore Pillow's warnings, of odd metadata and large images, from now on.

    ``warnings.catch_warnings`` would end that, but it is not for threads: two that cross leave the filters changed.
    """
    ours = ("ignore", None, Warning, _PILLOWS_MODULES, 0)
    if warnings.filters[:1] != [ours]:
        warnings.filterwarnings("ignore", module=_PILLOWS_MODULES.pattern)


def _white(image: Image.Image) -> int:
    """The value that is white in an image of integers wider than 8 bits."""
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # these two hold 16 bits at most
        raise DamagedImageError("32-bit or signed integers have no agreed range: save it with 8 or 16 bits, unsigned")
    twelve = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE) == (12,)
    return 4095 if twelve else 65535


def _other(data: bytes) -> str:
    if data[4:8] == b"ftyp":
        return " (it is a HEIC, AVIF or video file)"
    kinds = [kind for start, kind in _OTHERS.items() if data.startswith(start)]
    return f" (it is {kinds[0]})" if kinds else ""


def eight_bits(image: Image.Image, *, opened: Image.Image | None = None) -> Pixels:
    """A decoded Pillow image of any mode as (H, W) or (H, W, 3) uint8.

    Args:
        image: the image.
        opened: the image that it was made from, which knows its file's format; None for the image itself.

    Raises:
        DamagedImageError: pixels without an agreed range: floating-point numbers, 32-bit or signed integers.
    """
    from PIL import Image

    if image.mode.startswith("I"):  # wider than 8 bits, which Pillow's own conversion would clip
        white = _white(opened or image)
        wide = np.clip(np.asarray(image), 0, white).astype(np.uint32)
        return ((wide * 255 + white // 2) // white).astype(np.uint8)
    if image.mode == "F":
        raise DamagedImageError("floating-point pixels have no agreed range: save it with 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "L" if image.mode in ("1", "L") else "RGB"
    return np.array(image if image.mode == mode else image.convert(mode))
