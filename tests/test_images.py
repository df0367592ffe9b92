"""Decoding: what people's files hold, as people expect to see it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featcache import images
from featcache.images import DamagedImageError


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def rgb() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_come_back_to_the_bit(rgb: Image.Image, kind: str) -> None:
    np.testing.assert_array_equal(images.decode(encoded(rgb, kind)), np.asarray(rgb))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_come_back_close(kind: str) -> None:
    flat = Image.new("RGB", (16, 16), (200, 100, 50))
    assert np.abs(images.decode(encoded(flat, kind)).astype(int) - (200, 100, 50)).max() <= 4


def test_grey_stays_one_channel() -> None:
    grey = Image.new("L", (5, 4), 77)
    np.testing.assert_array_equal(images.decode(encoded(grey, "PNG")), np.full((4, 5), 77))
    assert images.decode(encoded(grey.convert("1"), "PNG")).shape == (4, 5)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    wide = Image.fromarray(np.array([[0, 257, 32896, 65535]], dtype=np.uint16))
    np.testing.assert_array_equal(images.decode(encoded(wide, "PNG")), [[0, 1, 128, 255]])
    np.testing.assert_array_equal(images.decode(encoded(wide, "TIFF")), [[0, 1, 128, 255]])


def test_transparency_is_laid_on_white() -> None:
    clear = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    clear.putpixel((1, 0), (10, 20, 30, 255))
    np.testing.assert_array_equal(images.decode(encoded(clear, "PNG")), [[[255, 255, 255], [10, 20, 30]]])
    palette = clear.convert("RGB").quantize(2)
    palette.info["transparency"] = palette.getpixel((0, 0))
    assert (images.decode(encoded(palette, "PNG", transparency=palette.getpixel((0, 0)))) == 255).all()


def test_palettes_become_their_colours(rgb: Image.Image) -> None:
    two = Image.new("P", (2, 1))
    two.putpalette([255, 0, 0, 0, 0, 255])
    two.putpixel((1, 0), 1)
    np.testing.assert_array_equal(images.decode(encoded(two, "PNG")), [[[255, 0, 0], [0, 0, 255]]])


def test_cmyk_becomes_rgb() -> None:
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    mean = images.decode(encoded(cyan, "JPEG")).mean((0, 1))
    assert mean[0] < 30 < 200 < min(mean[1:])


def test_exif_rotation_is_applied(rgb: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rows are columns
    np.testing.assert_array_equal(images.decode(encoded(rgb, "PNG", exif=exif)), np.rot90(np.asarray(rgb), -1))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"this is no picture", "not a JPEG, PNG"),
        (encoded(Image.new("P", (3, 3)), "GIF"), "not a JPEG, PNG"),
        (encoded(Image.new("RGB", (99, 99)), "JPEG")[:500], "damaged"),
        (encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), "floating-point"),
    ],
    ids=["empty", "text", "gif", "cut off", "float"],
)
def test_what_is_no_whole_image_is_told(data: bytes, reason: str) -> None:
    with pytest.raises(DamagedImageError, match=reason):
        images.decode(data)


def test_a_bomb_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DamagedImageError, match="bomb"):
        images.decode(encoded(Image.new("RGB", (99, 99)), "PNG"))


def test_a_missing_file_is_a_damaged_image(tmp_path: Path) -> None:
    with pytest.raises(DamagedImageError, match="cannot be read: No such file"):
        images.read(tmp_path / "gone.jpg")
