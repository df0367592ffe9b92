"""The canary pictures: the same bytes for ever, each through another way of decoding."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from featcache.cache import pictures
from featcache.common.hashing import digest
from featcache.sources import decoding

#: By name: the content digest, the decoded shape.
EXPECTED = {
    "colour_420.jpg": ("bf137b472241097ff27c073fbb982631", (240, 320, 3)),
    "grey_lying.jpg": ("556544c8b268715d1a821071db7d0a4e", (128, 88)),
    "palette_clear.png": ("487513d93e2f1bb805934b9f9d711560", (131, 97, 3)),
    "grey_16_bit.png": ("4b99b22bad96329362b985f51f7d6fb2", (48, 64)),
}


@pytest.fixture(scope="module")
def by_name() -> dict[str, bytes]:
    return dict(zip(pictures.names(), pictures.read(), strict=True))


def test_their_bytes_are_pinned_in_order(by_name: dict[str, bytes]) -> None:
    assert [(name, digest(data).hex()) for name, data in by_name.items()] == [
        (name, content) for name, (content, _) in EXPECTED.items()
    ]
    assert sum(map(len, by_name.values())) < 60_000


@pytest.mark.parametrize("name", EXPECTED)
def test_each_decodes_and_has_contrast(by_name: dict[str, bytes], name: str) -> None:
    pixels = decoding.decode(by_name[name])
    assert pixels.shape == EXPECTED[name][1]
    assert pixels.dtype == np.uint8
    assert pixels.std() > 30


def test_each_is_of_the_kind_that_its_name_says(by_name: dict[str, bytes]) -> None:
    colour, lying, palette, deep = (Image.open(io.BytesIO(data)) for data in by_name.values())
    assert (colour.format, colour.mode) == ("JPEG", "RGB")
    assert [component[1:3] for component in colour.layer] == [(2, 2), (1, 1), (1, 1)]  # 4:2:0
    assert (lying.format, lying.mode, lying.getexif()[0x0112]) == ("JPEG", "L", 6)
    assert (palette.format, palette.mode) == ("PNG", "P")
    assert {0, 255} < set(palette.info["transparency"])
    assert (deep.format, deep.mode) == ("PNG", "I;16")
    assert len(np.unique(np.asarray(deep) % 256)) > 200  # the low bits are in use
