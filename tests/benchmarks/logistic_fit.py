"""One logistic regression beside scikit-learn's, as called and at its best setting, and Intel's extension of it.

    python tests/benchmarks/logistic_fit.py [--cache features/FILE.h5] [--rows 50000] [--columns 512] [--C 1]

All reach the least objective within --gap (relative): for each contender, tol is lowered tenfold until it does, or,
where it never does, to the largest tol that comes within twice its best. The least is that of a longer fit; its duality
gap, in float64, bounds what may lie below. Then they take turns. The extension is timed where scikit-learn-intelex is
installed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from problems import cached, drawn, logistic_objective, seconds, standard, told
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from heads.logistic import LogisticClassifier

Fit = Callable[[float], Any]  # of tol


def contenders(X: np.ndarray, y: np.ndarray, C: float) -> dict[str, tuple[Fit, float]]:
    """How each fits, and its tol to begin with."""
    double = X.astype(np.float64)

    def single_thread(tol: float) -> Any:
        with threadpool_limits(1, "blas"):
            return LogisticRegression(C=C, tol=tol, max_iter=100_000).fit(X, y)

    found: dict[str, tuple[Fit, float]] = {
        "featcache": (lambda tol: LogisticClassifier(C=C, tol=tol).fit(X, y), 1e-6),
        "scikit-learn, float64": (lambda tol: LogisticRegression(C=C, tol=tol, max_iter=100_000).fit(double, y), 1e-4),
        "scikit-learn, float32": (lambda tol: LogisticRegression(C=C, tol=tol, max_iter=100_000).fit(X, y), 1e-4),
        "scikit-learn, float32, one BLAS thread": (single_thread, 1e-4),
    }
    try:
        from sklearnex.linear_model import LogisticRegression as Extended
    except ImportError:
        return found
    found["Intel extension, float32"] = (lambda tol: Extended(C=C, tol=tol, max_iter=100_000).fit(X, y), 1e-4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cache")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10, help="of drawn features")
    parser.add_argument("--C", type=float, default=1.0)
    parser.add_argument("--gap", type=float, default=1e-6)
    parser.add_argument("--least-tol", type=float, default=1e-8)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", default="", help="contenders whose name has this")
    parser.add_argument("--tols", type=json.loads, help='no search: {"featcache": 1e-6, …}, others are left out')
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # not converging shows in the gap
    X, y = cached(args.cache, args.rows, args.columns) if args.cache else drawn(args.rows, args.columns, args.classes)
    X = standard(X)
    print(f"{X.shape[0]:,} x {X.shape[1]:,}, {len(np.unique(y))} classes, C = {args.C:g}; {os.cpu_count()} processors")

    def value(model: Any) -> float:
        return logistic_objective(X, y, model.coef_, model.intercept_, args.C)[0]

    each = {name: work for name, work in contenders(X, y, args.C).items() if args.only in name}
    if args.tols:
        each = {name: (each[name][0], tol) for name, tol in args.tols.items()}
    tight = LogisticClassifier(C=args.C, tol=1e-9, max_iter=3000).fit(X, y)
    least, certificate = logistic_objective(X, y, tight.coef_, tight.intercept_, args.C)
    print(f"the least objective is {least:.8g}, by its duality gap to {certificate:.1e}")
    tols: dict[str, float] = {}
    gaps: dict[str, float] = {}
    for name, (fit, tol) in each.items():
        reached: dict[float, float] = {}
        while not reached or (not args.tols and min(reached.values()) > args.gap and tol >= args.least_tol * 0.99):
            reached[tol] = value(fit(tol)) / least - 1
            tol /= 10
        best = min(reached.values())  # of those that never arrive, what comes within twice of their best
        tols[name] = next(tol for tol, gap in reached.items() if gap <= max(args.gap, 2 * best))
        gaps[name] = reached[tols[name]]
        print(f"  {name}: tol {tols[name]:.0e} reaches {gaps[name]:.1e}", flush=True)
    taken: dict[str, list[float]] = {name: [] for name in each}
    for _ in range(args.repeat):
        for name, (fit, _) in each.items():
            taken[name].append(seconds(lambda fit=fit, tol=tols[name]: fit(tol)))  # type: ignore[misc]
    mine = statistics.median(taken["featcache"]) if "featcache" in taken else 1.0
    for name, times in taken.items():
        print(f"  {name}: {told(times)}, {statistics.median(times) / mine:.1f} times featcache's; gap {gaps[name]:.1e}")
    print(f"  load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
