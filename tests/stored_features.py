"""What tests of features share."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from featcache.cache import file_format
from featcache.cache.raw_reads import CacheFile, Stored
from featcache.cache.split import CachedSplit
from featcache.common import hashing


def split_of(path: Path, values: np.ndarray, *, block_rows: int = 16) -> CachedSplit:
    """A split whose features are these, in a file of its own."""
    checksums = np.zeros(-(-len(values) // block_rows), file_format.CHECKSUMS)
    for number, (start, stop) in enumerate(file_format.blocks(len(values), block_rows)):
        checksums["features"][number] = np.frombuffer(hashing.checksum(values[start:stop]), np.uint8)
    path.write_bytes(checksums.tobytes() + values.tobytes())
    file = CacheFile(path)
    stored = {
        "checksums": Stored(file, 0, file_format.CHECKSUMS, checksums.shape),
        "features": Stored(file, checksums.nbytes, values.dtype, values.shape),
        "labels": Stored(file, 0, np.dtype("<i8"), (len(values),)),
    }
    return CachedSplit("train", stored, block_rows=block_rows, class_names=("a", "b"))


def half(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float16)


def total(split: CachedSplit, rows: np.ndarray) -> float:
    """The sum of some rows' features; of this module, which a worker imports without torch."""
    return float(split.load(rows).sum(dtype=np.float64))
