"""The search for near duplicates in many rows: seconds, and the most memory that the process held.

    python tests/benchmarks/duplicate_search.py [--rows 100000] [--columns 512] [--planted 1000] [--threshold 0.9]

Features are drawn (seeded) with a spectrum that falls as 1 / rank, as those of convolutional networks about do, and lie
in a float16 file that is mapped, as a cache's do; some rows are copies of others with a little noise, to be found.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from heads.audit.directions import about_mean
from heads.audit.similar_pairs import similar_pairs
from heads.features import ArrayFeatures
from heads.runs import peak_rss_mb

_AT_ONCE = 50_000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--planted", type=int, default=1000)
    parser.add_argument("--threshold", type=float, default=0.9)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.npy"
        written = np.lib.format.open_memmap(path, "w+", np.float16, (args.rows, args.columns))
        rng = np.random.default_rng(0)
        scale = np.arange(1, args.columns + 1, dtype=np.float32) ** -0.5
        for start in range(0, args.rows, _AT_ONCE):
            rows = slice(start, min(start + _AT_ONCE, args.rows))
            written[rows] = rng.standard_normal((rows.stop - start, args.columns), np.float32) * scale
        first = np.arange(args.planted)
        second = args.rows - 1 - first
        noise = rng.standard_normal((args.planted, args.columns), np.float32) * scale
        written[second] = written[first] + 0.2 * noise
        written.flush()
        del written
        X = about_mean(ArrayFeatures(np.load(path, mmap_mode="r")))
        before, began, worked = peak_rss_mb(), time.perf_counter(), time.process_time()
        found = similar_pairs(X, args.threshold)
        seconds, work = time.perf_counter() - began, time.process_time() - worked
    pairs = set(zip(found.first.tolist(), found.second.tolist(), strict=True))
    planted = set(zip(first.tolist(), second.tolist(), strict=True))
    print(
        f"{args.rows:,} x {args.columns}, {os.cpu_count()} cores: {seconds:.1f} s, {work:.1f} s of processor; "
        f"{found.n_found:,} pairs above {args.threshold:g}, {len(planted & pairs):,} of {len(planted):,} planted; "
        f"{found.n_computed:,} products in full; most memory {peak_rss_mb():,.0f} MB, {before:,.0f} before (the mapped "
        "file's pages included)"
    )


if __name__ == "__main__":
    main()
