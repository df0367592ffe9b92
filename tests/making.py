"""Data sets in memory, builds that stop midway, and files that were damaged or have aged."""

from __future__ import annotations

import gzip
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from forking import Forked

from featcache.cache.cache_file import Cache
from featcache.common.locks import partial_path
from featcache.embedding.job import Embedding
from featcache.models.backbones import Backbone, load_backbone
from featcache.sources.image_sets import ArrayImages, ImageDataset, Split


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


def noise_pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def golden(folder: Path, name: str = "golden-tiny-64f64455.h5") -> Path:
    """A small finished cache, under a name as builders give."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(gzip.decompress(Path(__file__).with_name("golden_cache.h5.gz").read_bytes()))
    return path


def age(path: Path, days: float) -> None:
    then = time.time() - days * 86400
    os.utime(path, (then, then))


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def numbered(train: np.ndarray, n_test: int = 12) -> ImageDataset:
    """Noise pictures in memory, one for each number."""
    numbers = {"train": train, "test": np.arange(100_000, 100_000 + n_test)}
    splits = {}
    for name, chosen in numbers.items():
        pixels = np.stack([np.random.default_rng(int(i)).integers(0, 256, (8, 8), dtype=np.uint8) for i in chosen])
        splits[name] = Split(tuple(f"{name}/{i}" for i in chosen), chosen.astype(np.int64) % 2, ArrayImages(pixels))
    return ImageDataset("noise", ("a", "b"), splits)


def assert_equal_to_a_fresh_build(cache: Cache, work: Embedding, folder: Path) -> None:
    fresh = replace(work, cache_dir=folder).run().cache
    for name, split in fresh.splits.items():
        reused = cache.splits[name]
        assert reused.ids == split.ids
        for part in ("labels", "content", "status"):
            np.testing.assert_array_equal(getattr(reused, part), getattr(split, part))
        np.testing.assert_allclose(reused.load(), split.load(), rtol=2e-3, atol=2e-3)
    assert not cache.damages()


def with_other_weights(backbone: Backbone) -> Backbone:
    """The same backbone by name and recorded digest, with one weight changed: what a silent change would look like."""
    staged = load_backbone("timm/test_resnet", weights="none", image_size=32).staged
    staged.model.get_parameter("conv1.0.weight").data.mul_(1.5)
    return replace(backbone, staged=staged)


def stopped(work: Embedding, rows: int) -> None:
    """A build that is interrupted once so many rows are there."""
    with pytest.raises(Stop):
        work.run(on_progress=stop_after(rows))


def contents(cache: Cache) -> dict[str, bytes]:
    return {
        f"{name}/{part}": stored.read().tobytes()
        for name, split in cache.splits.items()
        for part, stored in split.stored.items()
    }


def rows_that_count(folder: Path) -> int:
    """Of the file in the making; each of their blocks is intact."""
    rows = 0
    for partial in (folder / "features").glob(".*.partial"):
        for split in Cache.open_unsealed(partial).splits.values():
            done = np.flatnonzero(split.checksums["features"].any(axis=1)).tolist()
            assert not list(split.damages(done))
            rows += sum(stop - start for start, stop in map(split.rows_of, done))
    return rows


def wait_for_rows(folder: Path, process: Forked) -> None:
    end = time.monotonic() + 100
    while not rows_that_count(folder):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "no row counted within 100 s"
        time.sleep(0.2)
