"""JPEG by simplejpeg: the pixels of Pillow, the refusals of Pillow in its words, in any number of threads.

``FEATCACHE_FUZZ_CASES`` sets the number of damaged files of each kind.
"""

from __future__ import annotations

import io
import os
import random
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from mutations import damaged
from PIL import Image

from featcache.sources import decoding
from featcache.sources.decoding import DamagedImageError

CASES = int(os.environ.get("FEATCACHE_FUZZ_CASES", "200"))


def scene(width: int = 93, height: int = 67) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    rng = np.random.default_rng(0)
    waves = np.stack([np.sin(x / 7 + y / 5) * 100 + 128, np.cos(y / 9) * 99 + 128, (x + y) % 256], axis=-1)
    return Image.fromarray(np.uint8((waves + rng.normal(0, 9, waves.shape)).clip(0, 255)))


def jpeg(mode: str = "RGB", kind: str = "JPEG", *, orientation: int = 1, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    scene().convert(mode).save(buffer, kind, exif=exif, **options)
    return buffer.getvalue()


SOUND = {
    "4:2:0": jpeg(),
    "4:2:2": jpeg(subsampling=1),
    "4:4:4": jpeg(subsampling=0, quality=98),
    "progressive": jpeg(progressive=True),
    "restarts": jpeg(restart_marker_rows=1),
    "RGB as such": jpeg(keep_rgb=True),
    "grey": jpeg("L"),
    "grey, progressive": jpeg("L", progressive=True),
    "several pictures": jpeg(kind="MPO", save_all=True, append_images=[scene().transpose(Image.Transpose.ROTATE_180)]),
    **{f"orientation {i}": jpeg(orientation=i) for i in range(2, 9)},
    "grey on its side": jpeg("L", orientation=6),
}
#: With what simplejpeg leaves to Pillow.
OTHERS = {"CMYK": jpeg("CMYK"), "bytes between markers": SOUND["4:2:0"].replace(b"\xff\xda", b"\0\0\xff\xda", 1)}


@contextmanager
def pillow_alone() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "_plain_jpeg", lambda data, image: None)
        yield


def outcome(data: bytes) -> np.ndarray | str:
    try:
        return decoding.decode(data)
    except DamagedImageError as error:
        return str(error)


def fast(data: bytes) -> np.ndarray | None:
    with Image.open(io.BytesIO(data)) as image:
        return decoding._plain_jpeg(data, image)


def assert_same(ours: np.ndarray | str, pillows: np.ndarray | str, levels: int = 1) -> None:
    """Messages to the letter, pixels to a grey level."""
    if isinstance(pillows, str) or isinstance(ours, str):
        assert isinstance(ours, str), f"passes where Pillow says: {pillows}"
        assert ours == pillows
    else:
        assert ours.shape == pillows.shape
        assert np.abs(ours.astype(int) - pillows).max() <= levels


@pytest.mark.parametrize("kind", [*SOUND, *OTHERS])
def test_the_pixels_are_pillows(kind: str) -> None:
    data = {**SOUND, **OTHERS}[kind]
    assert (fast(data) is None) == (kind in OTHERS)
    with pillow_alone():
        expected = decoding.decode(data)
    got = decoding.decode(data)
    assert_same(got, expected)
    assert got.flags.writeable
    assert got.flags.c_contiguous


def test_photographs_are_pillows(hymenoptera: Path) -> None:
    paths = sorted(hymenoptera.rglob("*.jpg"))[::10]
    assert paths
    for path in paths:
        data = path.read_bytes()
        assert fast(data) is not None
        with Image.open(path) as image:
            assert_same(decoding.decode(data), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", SOUND)
def test_damaged_files_fare_as_with_pillow_alone(kind: str) -> None:
    sound = SOUND[kind]
    outcomes: Counter[str] = Counter()
    for seed in range(CASES):
        rng = random.Random(f"{kind} {seed}")
        cut = rng.choice((rng.randrange(len(sound)), len(sound) - rng.randrange(1, 6)))
        data = damaged(rng, sound) if seed % 3 else sound[:cut]
        ours = outcome(data)
        with pillow_alone():
            pillows = outcome(data)
        assert_same(ours, pillows)
        outcomes["refused" if isinstance(pillows, str) else "read"] += 1
    assert min(outcomes["refused"], outcomes["read"]) > CASES // 10


@pytest.mark.parametrize("kind", ["4:2:0", "progressive", "grey"])
def test_a_file_cut_off_anywhere_is_damaged(kind: str) -> None:
    sound = SOUND[kind]
    for length in (*range(0, len(sound), 37), *range(len(sound) - 20, len(sound))):
        assert isinstance(outcome(sound[:length]), str), length
    assert "truncated" in str(outcome(sound[:-2]))


def test_a_flaw_that_pillow_overlooks_is_left_to_pillow(capfd: pytest.CaptureFixture[str]) -> None:
    """What libjpeg warns of; nothing of it reaches the terminal."""
    flawed = SOUND["4:2:0"][:-200] + b"\xff\xd9"  # an end, but too early: the rest is grey
    assert fast(flawed) is None
    with pillow_alone():
        expected = decoding.decode(flawed)
    assert_same(decoding.decode(flawed), expected)
    assert capfd.readouterr() == ("", "")


def test_a_header_that_tells_pillow_one_size_and_libjpeg_another_takes_no_memory() -> None:
    """Two frame headers: whichever counts, no more than the size that the limits let pass is made room for."""
    sound = SOUND["4:4:4"]
    at = sound.index(b"\xff\xc0")
    length = 2 + int.from_bytes(sound[at + 2 : at + 4], "big")
    huge = bytearray(sound[at : at + length])
    huge[5:9] = b"\xff\xdc\xff\xdc"
    for data in (sound[:at] + huge + sound[at:], sound[: at + length] + huge + sound[at + length :]):
        with pillow_alone():
            expected = outcome(bytes(data))
        assert_same(outcome(bytes(data)), expected)


@pytest.mark.filterwarnings("error")
def test_odd_metadata_is_no_matter_in_any_thread_and_other_warnings_still_are_heard() -> None:
    odd = jpeg(kind="MPO", save_all=True, append_images=[scene()]).replace(b"MPF\0MM", b"MPF\0MX")
    odd = odd.replace(b"MPF\0II", b"MPF\0IX")
    with pytest.warns(UserWarning, match="malformed MPO"), Image.open(io.BytesIO(odd)):
        pass
    filters = list(warnings.filters)
    together = threading.Barrier(4, timeout=60)

    def decode(_: int) -> np.ndarray:
        together.wait()
        return [decoding.decode(odd) for _ in range(20)][-1]

    with ThreadPoolExecutor(4) as pool:
        for pixels in pool.map(decode, range(4)):
            assert_same(pixels, decoding.decode(SOUND["4:2:0"]))
    added = [entry for entry in warnings.filters if entry not in filters]
    assert len(added) == 1
    assert [entry for entry in warnings.filters if entry not in added] == filters
    with pytest.raises(UserWarning, match="ours"):
        warnings.warn("ours", UserWarning, stacklevel=1)


def test_threads_decode_what_one_does() -> None:
    kinds = [*SOUND.values(), *OTHERS.values(), SOUND["4:2:0"][:-9]] * 5
    expected = [outcome(data) for data in kinds]
    with ThreadPoolExecutor(4) as pool:
        for ours, theirs in zip(pool.map(outcome, kinds), expected, strict=True):
            assert_same(ours, theirs, levels=0)
