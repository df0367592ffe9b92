"""How fast a cache is read, beside NumPy and beside the layouts of well-known toolkits; all in one run.

    python tests/benchmarks/cache_read.py [--rows 50000] [--map-gb 5] [--repeat 5]

Prints two Markdown tables: reading all of N x 512 float16, and random batches of 64 from a file of 256 x 14 x 14 maps.
Everything has been read once before (the page cache is warm); times are medians, and variants take turns.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from featcache.build.builder import CacheBuilder
from featcache.build.plan import Plan, PlannedRows
from featcache.cache.cache_file import Cache
from featcache.cache.canary import Canary

MAP_SHAPE = (256, 14, 14)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--map-gb", type=float, default=5)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the files go for the while")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        vectors(Path(folder), arguments.rows, arguments.repeat)
        maps(Path(folder), int(arguments.map_gb * 1e9 / (2 * np.prod(MAP_SHAPE))), arguments.repeat)


def vectors(folder: Path, n_rows: int, repeat: int) -> None:
    split = built(folder, n_rows, (512,), lambda rng, n: rng.standard_normal((n, 512), np.float32)).splits["train"]
    features = split.read()
    np.save(folder / "features.npy", features)
    for i, row in enumerate(features):
        torch.save(torch.from_numpy(row), folder / f"{i}.pt")
    with h5py.File(folder / "per_image.h5", "w") as file:
        for i, row in enumerate(features):
            file.create_dataset(f"image_{i}", data=row)

    def per_image_h5() -> Any:
        with h5py.File(folder / "per_image.h5", "r") as file:
            return np.stack([file[f"image_{i}"][()] for i in range(n_rows)])

    variants: dict[str, Callable[[], Any]] = {
        "numpy.load of one .npy": lambda: np.load(folder / "features.npy"),
        "cache, unchecked": lambda: split.read(check=False),
        "cache, checked": split.read,
        "cache, unchecked, as float32": lambda: split.load(check=False),
        "cache, checked, as float32": split.load,
        "one HDF5 data set an image": per_image_h5,
        "one .pt file an image": lambda: torch.stack([torch.load(folder / f"{i}.pt") for i in range(n_rows)]),
    }
    for name, variant in variants.items():
        assert np.array_equal(np.asarray(variant(), np.float16), features), name
    report(
        f"{n_rows:,} x 512 float16",
        medians(variants, repeat, tuple(variants)[-2:]),
        features.nbytes,
        "numpy.load of one .npy",
    )


def maps(folder: Path, n_rows: int, repeat: int) -> None:
    split = built(folder, n_rows, MAP_SHAPE, _noise).splits["train"]
    rng = np.random.default_rng(1)
    batches = 64
    random_rows = [rng.choice(n_rows, 64, replace=False) for _ in range(batches)]
    first = int(rng.integers(n_rows - 64 * batches))
    mapped = split.features

    def in_order(check: bool) -> None:
        for i in range(batches):
            split.read(np.arange(first + 64 * i, first + 64 * (i + 1)), check=check)

    variants: dict[str, Callable[[], Any]] = {
        "64 rows after 64 rows, checked": lambda: in_order(True),
        "64 rows after 64 rows, unchecked": lambda: in_order(False),
        "random 64, checked": lambda: [split.read(rows) for rows in random_rows],
        "random 64, unchecked": lambda: [split.read(rows, check=False) for rows in random_rows],
        "random 64, memory map": lambda: [mapped[rows] for rows in random_rows],
    }
    for block, _ in split.blocks("features", check=False):  # into the page cache
        assert block >= 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for rows in random_rows:
        split.read(rows)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    n_bytes = 64 * batches * split.stored["features"].row_bytes
    title = f"{batches} batches of 64 from {n_rows:,} maps, a file of {split.stored['features'].n_bytes / 1e9:.1f} GB"
    report(title, medians(variants, repeat), n_bytes, "64 rows after 64 rows, checked")
    print(f"\nMemory grew by {grown:.0f} MB while random batches were read.")


def _noise(rng: np.random.Generator, n: int) -> Any:
    return rng.integers(-1000, 1000, (n, *MAP_SHAPE), np.int16).view(np.float16)


def built(folder: Path, n_rows: int, shape: tuple[int, ...], draw: Callable[[np.random.Generator, int], Any]) -> Cache:
    """A sealed cache of random features."""
    rng = np.random.default_rng(0)
    splits = {}
    for name, count in (("train", n_rows), ("test", 1)):
        content = rng.integers(0, 256, (count, 16), dtype=np.uint8)
        splits[name] = PlannedRows(tuple(f"{name}/{i}" for i in range(count)), np.zeros(count, np.int64), content)
    encoder = {"backbone": "none", "weights": {}, "preprocessing": {}, "cut": "none", "precision": "fp32"}
    encoder |= {"engine": "eager", "storage": "float16", "views": 0}
    source = {"dataset": "noise", "selection": {}}
    plan = Plan(encoder=encoder, class_names=("a",), splits=splits, source=source, feature_shape=shape)
    provenance: dict[str, Any] = {"fingerprint": plan.fingerprint, "weights": "none", "batch": 64, "threads": 1}
    provenance |= {"hardware": {}, "versions": {}, "trunk_parameters": 0, "command": [], "working_folder": ""}
    provenance["source"] = {**source, "notes": [], "folder": None}
    canary = Canary(("none",), np.zeros((1, *shape), np.float16), np.zeros((1, 16), np.uint8))
    builder = CacheBuilder.create_or_resume(folder / plan.file_name, plan, provenance, canary)
    assert builder.look()
    for name, rows in builder.groups(1024):
        builder.put(name, rows, draw(rng, len(rows)).astype(np.float16), np.zeros(len(rows), np.uint8), {})
    assert not builder.look()
    return Cache.open(builder.seal(seconds=0))


def medians(variants: dict[str, Callable[[], Any]], repeat: int, slow: Sequence[str] = ()) -> dict[str, float]:
    """Seconds of one call, each measured over ten after one that is not counted; of slow variants over one."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeat):
        for name, variant in variants.items():
            calls = 1 if name in slow else 10
            if name not in slow:
                variant()
            begun = time.perf_counter()
            for _ in range(calls):
                variant()
            seconds[name].append((time.perf_counter() - begun) / calls)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def report(title: str, seconds: dict[str, float], n_bytes: int, reference: str) -> None:
    print(f"\n| {title} | seconds | MB/s | time against {reference} |\n|---|---|---|---|")
    for name, taken in seconds.items():
        print(f"| {name} | {taken:.4f} | {n_bytes / taken / 1e6:,.0f} | {taken / seconds[reference]:.2f} |")


if __name__ == "__main__":
    main()
