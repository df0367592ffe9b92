"""Data sets in memory, builds that stop midway, and files that were damaged or have aged."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from featcache.cache import Cache
from featcache.datasets import ArrayImages, ImageDataset, Split
from featcache.embedding import Embedding
from featcache.locks import partial_path


class Stop(Exception):
    """What a test raises in the middle of the work."""


def stop_after(rows: int) -> Callable[[int, int], None]:
    def on_progress(done: int, total: int) -> None:
        if done >= rows:
            raise Stop

    return on_progress


def noise(n_train: int, name: str = "noise", seed: int = 0) -> ImageDataset:
    """In memory, in two classes; the first rows of a longer one are those of a shorter one."""
    splits = {}
    for split, count in (("train", n_train), ("test", 12)):
        rng = np.random.default_rng([len(split), seed])
        pixels = rng.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        ids = tuple(f"{split}/{i}" for i in range(count))
        splits[split] = Split(ids, np.arange(count) % 2, ArrayImages(pixels))
    return ImageDataset(name, ("a", "b"), splits)


def interrupted(work: Embedding, rows: int) -> Path:
    """A file in the making."""
    with pytest.raises(Stop):
        work.run(on_progress=stop_after(rows))
    return partial_path(work.path)


def flip(cache: Cache, split: str, data_set: str, row: int) -> None:
    stored = cache.splits[split].stored[data_set]
    with cache.path.open("r+b") as file:
        file.seek(stored.offset + row * stored.row_bytes)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 4]))


def age(path: Path, days: float) -> None:
    then = time.time() - days * 86400
    os.utime(path, (then, then))


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
