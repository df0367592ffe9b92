"""Decoding: what people's files hold, as people expect to see it."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featcache.common.hashing import digest
from featcache.sources import decoding
from featcache.sources.decoding import DamagedImageError
from featcache.sources.image_inputs import handed_images
from featcache.sources.image_sets import FileImages


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
    np.testing.assert_array_equal(decoding.decode(encoded(rgb, kind)), np.asarray(rgb))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_come_back_close(kind: str) -> None:
    flat = Image.new("RGB", (16, 16), (200, 100, 50))
    assert np.abs(decoding.decode(encoded(flat, kind)).astype(int) - (200, 100, 50)).max() <= 4


def test_grey_stays_one_channel() -> None:
    grey = Image.new("L", (5, 4), 77)
    np.testing.assert_array_equal(decoding.decode(encoded(grey, "PNG")), np.full((4, 5), 77))
    assert decoding.decode(encoded(grey.convert("1"), "PNG")).shape == (4, 5)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    wide = Image.fromarray(np.array([[0, 257, 32896, 65535]], dtype=np.uint16))
    np.testing.assert_array_equal(decoding.decode(encoded(wide, "PNG")), [[0, 1, 128, 255]])
    np.testing.assert_array_equal(decoding.decode(encoded(wide, "TIFF")), [[0, 1, 128, 255]])


def test_every_value_of_sixteen_bits_is_rounded_to_the_nearest_of_eight() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    expected = ((every.astype(np.uint32) + 128) // 257).astype(np.uint8)
    for mode in ("I;16", "I"):  # as Pillow reads 16-bit PNGs today, and as it did until release 10
        image = Image.frombytes("I;16", (256, 256), every.tobytes()).convert(mode)
        image.format = "PNG"
        np.testing.assert_array_equal(decoding.eight_bits(image), expected)
    portable = b"P5 256 256 65535\n" + every.astype(">u2").tobytes()  # of mode I
    np.testing.assert_array_equal(decoding.decode(portable), expected)
    handed = handed_images([Image.open(io.BytesIO(portable)), Image.fromarray(every.astype(np.int32))]).images.read(
        [0, 1]
    )
    np.testing.assert_array_equal(handed.pixels[0], expected)
    assert handed.damaged.keys() == {1}  # an array of 32 bits, whatever its values


def grey_tiff(bits: int, samples: bytes, *, sample_format: int = 1) -> bytes:
    """A TIFF of one row of two pixels."""
    tags = {256: 2, 257: 1, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(samples), 339: sample_format}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return struct.pack("<2sHI", b"II", 42, 8 + len(samples)) + samples + directory


def test_twelve_bits_are_scaled_by_their_own_range() -> None:
    black_and_white, nearly = bytes([0x00, 0x0F, 0xFF]), bytes([0x80, 0x08, 0x00])
    np.testing.assert_array_equal(decoding.decode(grey_tiff(12, black_and_white)), [[0, 255]])
    np.testing.assert_array_equal(decoding.decode(grey_tiff(12, nearly)), [[128, 128]])
    np.testing.assert_array_equal(decoding.decode(grey_tiff(16, np.uint16([257, 65535]).tobytes())), [[1, 255]])


@pytest.mark.parametrize(("bits", "sample_format"), [(32, 1), (32, 2), (16, 2)])
def test_integers_without_an_agreed_range_are_refused(bits: int, sample_format: int) -> None:
    values = np.array([0, 255], dtype=f"<{'xui'[sample_format]}{bits // 8}")
    reason = "32-bit or signed integers have no agreed range: save it with 8 or 16 bits, unsigned"
    with pytest.raises(DamagedImageError, match=f"^{reason}$"):
        decoding.decode(grey_tiff(bits, values.tobytes(), sample_format=sample_format))
    with pytest.raises(DamagedImageError, match=f"^{reason}$"):
        decoding.eight_bits(Image.fromarray(np.array([[0, 255]], np.int32)))


def test_transparency_is_laid_on_white() -> None:
    clear = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    clear.putpixel((1, 0), (10, 20, 30, 255))
    np.testing.assert_array_equal(decoding.decode(encoded(clear, "PNG")), [[[255, 255, 255], [10, 20, 30]]])
    palette = clear.convert("RGB").quantize(2)
    palette.info["transparency"] = palette.getpixel((0, 0))
    assert (decoding.decode(encoded(palette, "PNG", transparency=palette.getpixel((0, 0)))) == 255).all()


def test_palettes_become_their_colours(rgb: Image.Image) -> None:
    two = Image.new("P", (2, 1))
    two.putpalette([255, 0, 0, 0, 0, 255])
    two.putpixel((1, 0), 1)
    np.testing.assert_array_equal(decoding.decode(encoded(two, "PNG")), [[[255, 0, 0], [0, 0, 255]]])


def test_cmyk_becomes_rgb() -> None:
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    mean = decoding.decode(encoded(cyan, "JPEG")).mean((0, 1))
    assert mean[0] < 30 < 200 < min(mean[1:])


def test_exif_rotation_is_applied(rgb: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rows are columns
    np.testing.assert_array_equal(decoding.decode(encoded(rgb, "PNG", exif=exif)), np.rot90(np.asarray(rgb), -1))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"this is no picture", "not a JPEG, PNG"),
        (encoded(Image.new("P", (3, 3)), "GIF"), r"not a JPEG, PNG, WebP, BMP or TIFF image \(it is a GIF\)"),
        (b"\0\0\0\x1cftypheic" + bytes(20), "it is a HEIC"),
        (encoded(Image.new("RGB", (99, 99)), "JPEG")[:500], "damaged"),
        (encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), "floating-point"),
    ],
    ids=["empty", "text", "gif", "heic", "cut off", "float"],
)
def test_what_is_no_whole_image_is_told(data: bytes, reason: str) -> None:
    with pytest.raises(DamagedImageError, match=reason):
        decoding.decode(data)


def test_a_bomb_is_refused_whatever_pillows_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    side = 13_378  # squared, the first above the limit
    assert (side - 1) ** 2 <= decoding.MAX_PIXELS < side**2
    data = encoded(Image.new("1", (side, side)), "PNG")
    for limit in (None, Image.MAX_IMAGE_PIXELS, 100):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DamagedImageError, match="bomb"):
            decoding.decode(data)
    with pytest.raises(DamagedImageError, match="bomb"):  # the lower of both limits holds
        decoding.decode(encoded(Image.new("RGB", (99, 99)), "PNG"))


def test_a_file_above_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    path.write_bytes(encoded(Image.new("RGB", (9, 9)), "JPEG"))
    os.truncate(path, decoding.MAX_FILE_BYTES)
    assert decoding.decode(decoding.read(path)).shape == (9, 9, 3)
    os.truncate(path, decoding.MAX_FILE_BYTES + 1)
    for reading in (decoding.read, decoding.file_digest):
        with pytest.raises(DamagedImageError, match="268,435,457 bytes, above the limit of 268,435,456"):
            reading(path)


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    for size in (0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1):
        (tmp_path / "x").write_bytes(os.urandom(size))
        assert decoding.file_digest(tmp_path / "x") == digest(decoding.read(tmp_path / "x"))


def test_what_is_no_regular_file_does_not_hang_the_job(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    Image.new("RGB", (9, 9)).save(tmp_path / "real.jpg")
    (tmp_path / "link.jpg").symlink_to("real.jpg")
    names = ("fifo.jpg", "real.jpg", "folder.jpg", "device.jpg", "loop.jpg", "link.jpg")
    files = FileImages(tmp_path, names)
    read = files.read(range(len(names)))
    reasons = {names[row]: reason for row, reason in read.damaged.items()}
    assert reasons == {
        "fifo.jpg": "cannot be read: a FIFO, not a regular file",
        "folder.jpg": "cannot be read: a folder, not a regular file",
        "device.jpg": "cannot be read: a device, not a regular file",
        "loop.jpg": "cannot be read: Too many levels of symbolic links",
    }
    assert [pixels.shape for pixels in read.pixels] == [(1, 1), (9, 9, 3), *[(1, 1)] * 3, (9, 9, 3)]
    assert read.digests.any(axis=1).tolist() == [False, True, False, False, False, True]
    np.testing.assert_array_equal(files.digests(), read.digests)


def test_a_missing_file_is_a_damaged_image(tmp_path: Path) -> None:
    with pytest.raises(DamagedImageError, match="cannot be read: No such file"):
        decoding.read(tmp_path / "gone.jpg")
