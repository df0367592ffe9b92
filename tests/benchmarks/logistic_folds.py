"""A path of 12 values of C in five folds beside scikit-learn's logistic regression doing the same.

    python tests/benchmarks/logistic_folds.py [--cache features/FILE.h5] [--rows 10000] [--columns 512] [--tol 1e-6]

scikit-learn's fits go from the smallest C on, each from where the last ended, as its LogisticRegressionCV's do. As
called are float64 and float32 with BLAS's own threads, one fold after the other; its best setting here is float32, one
BLAS thread a process and a process a core. `--tol` is scikit-learn's. Its five folds are timed once each and added up
(each is a run of its own, the same work on other rows); ours, which takes all folds at once, five times.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from typing import Any

import joblib
import numpy as np
from problems import cached, drawn, logistic_objective, seconds, standard, told
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from threadpoolctl import threadpool_limits

from heads.softmax_objective import SoftmaxObjective
from heads.softmax_path import softmax_path

CS = tuple(float(f"{10.0 ** (i / 2):.2g}") for i in range(-10, 2))

Found = list[tuple[np.ndarray, np.ndarray]]  # W, b for each C


def theirs(X: np.ndarray, y: np.ndarray, tol: float, threads: int | None) -> tuple[float, Found]:
    """Seconds and solutions of one fold."""
    warnings.simplefilter("ignore")  # what does not converge shows in the gap
    found, began = [], time.perf_counter()
    with threadpool_limits(threads, "blas"):
        model = LogisticRegression(tol=tol, max_iter=20_000, warm_start=True)
        for C in CS:
            model.set_params(C=C).fit(X, y)
            found.append((model.coef_.astype(np.float64), model.intercept_.astype(np.float64)))
    return time.perf_counter() - began, found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cache")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10, help="of drawn features")
    parser.add_argument("--tol", type=float, default=1e-6)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--without", default="", help="leave out the ways whose name has this")
    args = parser.parse_args()
    X, y = cached(args.cache, args.rows, args.columns) if args.cache else drawn(args.rows, args.columns, args.classes)
    X, n_classes = standard(X), len(np.unique(y))
    folds = [train for train, _ in StratifiedKFold(5, shuffle=True, random_state=0).split(X, y)]
    weights = np.zeros((len(y), len(folds)))
    for number, train in enumerate(folds):
        weights[train, number] = 1

    def mine() -> list[Found]:
        objective = SoftmaxObjective(X=X, codes=y, weights=weights, n_classes=n_classes)
        minima = list(softmax_path(objective, CS))
        return [[(each.weights[number], each.intercepts[number]) for each in minima] for number in range(len(folds))]

    solutions, taken = {"featcache": mine()}, {"featcache": [seconds(mine) for _ in range(args.repeat)]}
    print(
        f"{X.shape[0]:,} x {X.shape[1]:,}, {n_classes} classes, {len(CS)} values of C from {CS[0]:g} to {CS[-1]:g}, ",
        end="",
    )
    print(f"{len(folds)} folds, {os.cpu_count()} processors\n  featcache: {told(taken['featcache'])}", flush=True)
    ways: dict[str, tuple[Any, int | None]] = {
        "scikit-learn, float32": (np.float32, None),
        "scikit-learn, float64": (np.float64, None),
        "scikit-learn, float32, one BLAS thread": (np.float32, 1),
    }
    for name, (dtype, threads) in ways.items():
        if args.without and args.without in name:
            continue
        each = [theirs(X[train].astype(dtype), y[train], args.tol, threads) for train in folds]
        taken[name] = [sum(spent for spent, _ in each)]
        solutions[name] = [found for _, found in each]
        print(f"  {name}: {taken[name][0]:.1f} s; folds {', '.join(f'{spent:.1f}' for spent, _ in each)} s", flush=True)
    name = f"scikit-learn, float32, {os.cpu_count()} processes of one BLAS thread"
    parts = [(X[train], y[train]) for train in folds]
    with joblib.Parallel(n_jobs=os.cpu_count()) as pool:
        pool(joblib.delayed(theirs)(own[:500], labels[:500], 1.0, 1) for own, labels in parts)  # starts the processes
        taken[name] = [seconds(lambda: pool(joblib.delayed(theirs)(*part, args.tol, 1) for part in parts))]
    print(f"  {name}: {taken[name][0]:.1f} s", flush=True)
    least = np.full((len(folds), len(CS)), np.inf)
    values = {}
    for way, found in solutions.items():
        values[way] = np.array(
            [
                [logistic_objective(X[train], y[train], *found[n][i], C)[0] for i, C in enumerate(CS)]
                for n, train in enumerate(folds)
            ]
        )
        least = np.minimum(least, values[way])
    for way, value in values.items():
        gaps = value / least - 1
        print(f"  {way}: gaps to the least that any found: median {np.median(gaps):.1e}, largest {gaps.max():.1e}")
    mid = statistics.median(taken["featcache"])
    for way, times in taken.items():
        print(f"  {way}: {statistics.median(times) / mid:.1f} times featcache's seconds")
    print(f"  load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
