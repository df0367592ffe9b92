"""A linear SVM's path of C beside scikit-learn's LinearSVC, one fit a C; both in one run.

    python tests/benchmarks/svm_path.py [--cache features/FILE.h5] [--rows 5000] [--columns 512] [--repeat 5]

Squared hinge loss, one class against the rest. LinearSVC is fitted in float64 as called (tol 1e-4) and with a looser
tol. It penalises the intercept too, as a weight of a constant column, so each is held against the least of its own
objective, that of a closer fit. Intel's extension has no linear SVM.
"""

from __future__ import annotations

import argparse
import os
import statistics
import warnings
from typing import Any
from unittest.mock import patch

import numpy as np
from problems import cached, drawn, seconds, standard, told
from sklearn.svm import LinearSVC

from heads import squared_hinge as solver
from heads.spectra import spectrum_about_mean

CS = tuple(float(C) for C in 10.0 ** np.arange(-5, -1))


def value(X: np.ndarray, y: np.ndarray, W: np.ndarray, b: np.ndarray, C: float, *, intercept_counts: bool) -> float:
    """The sum over classes of their objectives, float64."""
    signs = np.where(y[:, None] == np.arange(len(W)), 1.0, -1.0)
    slack = np.maximum(0, 1 - signs * (X.astype(np.float64) @ W.T + b))
    return float(0.5 * (W**2).sum() + 0.5 * intercept_counts * (b**2).sum() + C * (slack**2).sum())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cache")
    parser.add_argument("--rows", type=int, default=5_000)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10, help="of drawn features")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # not converging shows in the gap
    X, y = cached(args.cache, args.rows, args.columns) if args.cache else drawn(args.rows, args.columns, args.classes)
    X, n_classes = standard(X), len(np.unique(y))
    double = X.astype(np.float64)

    def mine(tolerance: float = solver._TOLERANCE) -> list[Any]:
        found, start, eigen = [], None, spectrum_about_mean(X, None)
        with patch.object(solver, "_TOLERANCE", tolerance):
            for C in CS:
                start, _ = solver.squared_hinge(X, y, n_classes, C=C, eigen=eigen, start=start)
                found.append((start[:, :-1], start[:, -1]))
        return found

    def theirs(tol: float = 1e-4) -> list[Any]:
        fitted = [LinearSVC(C=C, tol=tol, max_iter=100_000, dual="auto").fit(double, y) for C in CS]
        return [(model.coef_, model.intercept_) for model in fitted]

    ways = {"featcache": mine, "LinearSVC": theirs, "LinearSVC, tol 0.01": lambda: theirs(0.01)}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.repeat):
        for name, fit in ways.items():
            taken[name].append(seconds(fit))
    closer = {True: theirs(1e-6), False: mine(1e-7)}
    print(
        f"{X.shape[0]:,} x {X.shape[1]:,}, {n_classes} classes, C from {CS[0]:g} to {CS[-1]:g}; {os.cpu_count()} cores"
    )
    for name, fit in ways.items():
        counts = name != "featcache"
        values, least = (
            [value(X, y, *each, C, intercept_counts=counts) for each, C in zip(found, CS, strict=True)]
            for found in (fit(), closer[counts])
        )
        gaps = [a / b - 1 for a, b in zip(values, least, strict=True)]
        ratio = statistics.median(a / b for a, b in zip(taken[name], taken["featcache"], strict=True))
        print(f"  {name}: {told(taken[name])}, {ratio:.1f} times featcache's; ", end="")
        print("gaps " + ", ".join(f"{gap:.1e}" for gap in gaps))
    print(f"  load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
