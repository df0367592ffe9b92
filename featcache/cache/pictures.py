"""Read the four small pictures that are embedded into each cache, to show when features change.

They were drawn with NumPy for this purpose, from gratings, chirps, shaded discs, bars and a little seeded noise, and
saved with Pillow; nothing in them was found or photographed. Each takes another way through ``decoding.decode``:

- ``colour_420.jpg``: 320 x 240, colour at half resolution (4:2:0), quality 85;
- ``grey_lying.jpg``: 128 x 88, grey, EXIF orientation 6, so that upright it is 88 x 128;
- ``palette_clear.png``: 97 x 131, a palette of 12 colours, one of them clear and three half clear;
- ``grey_16_bit.png``: 64 x 48, 16-bit grey.

Their bytes are part of the format: another picture needs another name.
"""

from __future__ import annotations

_NAMES = ("colour_420.jpg", "grey_lying.jpg", "palette_clear.png", "grey_16_bit.png")


def names() -> tuple[str, ...]:
    """The pictures' file names, always in this order."""
    return _NAMES


def read() -> tuple[bytes, ...]:
    """The pictures' bytes, in the order of ``names``."""
    from importlib.resources import files

    folder = files("featcache.cache") / "canary_images"
    return tuple((folder / name).read_bytes() for name in _NAMES)
