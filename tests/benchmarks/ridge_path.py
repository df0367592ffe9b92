"""Ridge with leave-one-out over ten penalties beside scikit-learn's RidgeClassifierCV; both in one run.

    python tests/benchmarks/ridge_path.py [--rows 50000] [--columns 512] [--classes 10] [--repeat 5]
    python tests/benchmarks/ridge_path.py --cache features/FILE.h5 [--rows 20000]

The features are drawn (seeded) with a spectrum that falls as 1 / rank, as those of convolutional networks about do, and
classes that overlap; --cache takes the training features of a cache instead. Prints medians and what the two say.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.linear_model import RidgeClassifierCV

from featcache.cache import Cache
from heads.features import ArrayFeatures
from heads.ridge import RidgePath
from heads.standardization import column_statistics, standardized

ALPHAS = tuple(float(alpha) for alpha in 10.0 ** np.arange(-2, 8))


def drawn(rows: int, columns: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, rows)
    spread = np.arange(1, columns + 1) ** -0.5  # standard deviations: variances fall as 1 / rank
    rotation = np.linalg.qr(rng.standard_normal((columns, columns)))[0]
    latent = rng.standard_normal((rows, columns), dtype=np.float32)
    latent += 0.7 * rng.standard_normal((classes, columns)).astype(np.float32)[labels]
    return np.maximum(latent @ (spread[:, None] * rotation).astype(np.float32) + 0.1, 0), labels


def cached(path: Path, rows: int) -> tuple[np.ndarray, np.ndarray]:
    split = Cache.open(path).splits["train"]
    chosen = np.sort(np.random.default_rng(0).permutation(split.usable())[:rows])
    features = split.load(chosen)
    return features if features.ndim == 2 else features[:, 0], split.labels[chosen]


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--cache", type=Path)
    args = parser.parse_args()
    X, y = cached(args.cache, args.rows) if args.cache else drawn(args.rows, args.columns, args.classes)
    X = standardized(X, *column_statistics(ArrayFeatures(X)))
    mine, theirs = RidgePath(alphas=ALPHAS), RidgeClassifierCV(alphas=ALPHAS, store_cv_results=True)
    seconds: dict[str, list[float]] = {"ours": [], "scikit-learn": []}
    mine.fit(X[:2000], y[:2000])  # what is imported and started once
    for _ in range(args.repeat):
        seconds["ours"].append(timed(lambda: mine.fit(X, y)))
        seconds["scikit-learn"].append(timed(lambda: theirs.fit(X, y)))
    median = {name: statistics.median(each) for name, each in seconds.items()}
    exact = theirs.fit(X.astype(np.float64), y)  # it computes in what it is given
    squares = exact.cv_results_.mean(axis=(0, 1))
    print(f"{X.shape[0]:,} x {X.shape[1]:,}, {len(mine.classes_)} classes, {len(ALPHAS)} penalties, {args.repeat} runs")
    for name, each in seconds.items():
        print(f"  {name}: median {median[name]:.3f} s ({min(each):.3f} to {max(each):.3f})")
    print(f"  ratio {median['scikit-learn'] / median['ours']:.1f}; load average {os.getloadavg()[0]:.1f}")
    print(f"  alpha {mine.alpha_:g} and {exact.alpha_:g}; leave-one-out errors differ by at most ", end="")
    print(f"{np.abs(mine.loo_mse_ - squares).max():.1e} of {squares.min():.3f}")


if __name__ == "__main__":
    main()
