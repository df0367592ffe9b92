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
from pathlib import Path

import numpy as np
from problems import cached, drawn, seconds, standard, told
from sklearn.linear_model import RidgeClassifierCV

from heads.ridge import RidgePath

ALPHAS = tuple(float(alpha) for alpha in 10.0 ** np.arange(-2, 8))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--cache", type=Path)
    args = parser.parse_args()
    X, y = cached(args.cache, args.rows) if args.cache else drawn(args.rows, args.columns, args.classes)
    X = standard(X)
    mine, theirs = RidgePath(alphas=ALPHAS), RidgeClassifierCV(alphas=ALPHAS, store_cv_results=True)
    taken: dict[str, list[float]] = {"ours": [], "scikit-learn": []}
    mine.fit(X[:2000], y[:2000])  # what is imported and started once
    for _ in range(args.repeat):
        taken["ours"].append(seconds(lambda: mine.fit(X, y)))
        taken["scikit-learn"].append(seconds(lambda: theirs.fit(X, y)))
    median = {name: statistics.median(each) for name, each in taken.items()}
    exact = theirs.fit(X.astype(np.float64), y)  # it computes in what it is given
    squares = exact.cv_results_.mean(axis=(0, 1))
    print(f"{X.shape[0]:,} x {X.shape[1]:,}, {len(mine.classes_)} classes, {len(ALPHAS)} penalties, {args.repeat} runs")
    for name, each in taken.items():
        print(f"  {name}: {told(each)}")
    print(f"  ratio {median['scikit-learn'] / median['ours']:.1f}; load average {os.getloadavg()[0]:.1f}")
    print(f"  alpha {mine.alpha_:g} and {exact.alpha_:g}; leave-one-out errors differ by at most ", end="")
    print(f"{np.abs(mine.loo_mse_ - squares).max():.1e} of {squares.min():.3f}")


if __name__ == "__main__":
    main()
