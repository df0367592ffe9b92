"""What the benchmarks of heads fit: real features of a cache, or drawn ones; and how they are timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from featcache.cache.cache_file import Cache
from heads.features import ArrayFeatures
from heads.standardization import column_statistics, standardized


def drawn(rows: int, columns: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes that overlap in features (rows, columns) whose variances fall as 1 / rank, about as a network's do."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, rows)
    spread = np.arange(1, columns + 1) ** -0.5  # standard deviations: variances fall as 1 / rank
    rotation = np.linalg.qr(rng.standard_normal((columns, columns)))[0]
    latent = rng.standard_normal((rows, columns), dtype=np.float32)
    latent += 0.7 * rng.standard_normal((classes, columns)).astype(np.float32)[labels]
    return np.maximum(latent @ (spread[:, None] * rotation).astype(np.float32) + 0.1, 0), labels


def cached(path: Path, rows: int, columns: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """So many training rows of a cache, drawn at random, and the first so many of their features."""
    split = Cache.open(path).splits["train"]
    chosen = np.sort(np.random.default_rng(0).permutation(split.usable())[:rows])
    features = split.load(chosen)
    return (features if features.ndim == 2 else features[:, 0])[:, :columns], split.labels[chosen]


def standard(X: np.ndarray) -> np.ndarray:
    """Standardised in float32."""
    return standardized(X, *column_statistics(ArrayFeatures(X)))


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def told(each: Sequence[float]) -> str:
    return f"median {statistics.median(each):.2f} s ({min(each):.2f} to {max(each):.2f}, {len(each)} runs)"


def logistic_objective(X: np.ndarray, y: np.ndarray, W: np.ndarray, b: np.ndarray, C: float) -> tuple[float, float]:
    """scikit-learn's objective C * sum of losses + |W|^2 / 2 in float64, and its relative duality gap: a bound of how
    far it is from the least. X (N, D), y codes (N,), W (K, D), b (K,)."""
    from scipy import special

    from heads.duality_gaps import SoftmaxDual

    loss, gradient, shift = 0.0, np.zeros_like(W, np.float64), np.zeros(len(b))
    for start in range(0, len(X), 8192):
        z, code = X[start : start + 8192].astype(np.float64), y[start : start + 8192]
        logs = special.log_softmax(z @ W.T + b, axis=1)
        off = np.exp(logs)
        off[np.arange(len(code)), code] -= 1
        loss -= logs[np.arange(len(code)), code].sum()
        gradient += off.T @ z
        shift += off.sum(axis=0)
    of_class = np.eye(len(b))[y]
    dual = SoftmaxDual(
        features=X.mean(axis=0, dtype=np.float64)[None],
        class_features=(of_class.T @ X / len(X))[None],
        class_shares=of_class.mean(axis=0)[None],
    )
    points, gradients = (np.column_stack(parts)[None] for parts in ((W, b), (gradient / len(X), shift / len(X))))
    gap = dual.gaps(points, np.array([loss / len(X)]), gradients, np.array([1 / (C * len(X))]), np.array([0]))
    return float(C * loss + 0.5 * (W**2).sum()), float(gap[0])
