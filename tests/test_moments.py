"""Moments add up, forget what is taken away, keep their digits, and one pass serves every fold."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass, fields

import numpy as np
import pytest
from views import viewed

from heads.classifiers import CLASSIFIERS
from heads.features import ArrayFeatures
from heads.fitting import Folds
from heads.moments import Moments, fold_moments, task_moments
from heads.standardization import column_statistics

N, D, K = 500, 12, 4


def rows(n: int = N, *, mean: float = 3.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, K, n)
    X = rng.normal(size=(n, D)) * np.linspace(0.1, 3, D) + y[:, None] + mean
    return X.astype(np.float32), y, rng.uniform(0.5, 2.0, n)


def moments(X: np.ndarray, y: np.ndarray, w: np.ndarray | None = None, center: np.ndarray | None = None) -> Moments:
    made = Moments.zero(X[0] if center is None else center, K)
    made.add(X, y, w)
    return made


def assert_same(one: Moments, other: Moments, rtol: float = 1e-10) -> None:
    for f in fields(Moments):
        a, b = getattr(one, f.name), getattr(other, f.name)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max(), err_msg=f.name)


@pytest.mark.parametrize("weighted", [False, True])
def test_they_are_the_sums_they_say(weighted: bool) -> None:
    X, y, w = rows()
    w = w if weighted else np.ones(N)
    found = moments(X, y, w if weighted else None)
    off = X.astype(np.float64) - X[0]
    np.testing.assert_allclose(found.scatter, (off * w[:, None]).T @ off)
    np.testing.assert_allclose(found.sums, [(off * w[:, None])[y == c].sum(axis=0) for c in range(K)])
    np.testing.assert_allclose(found.weights, np.bincount(y, w))
    np.testing.assert_allclose(found.counts, np.bincount(y))
    np.testing.assert_allclose(found.total, off.sum(axis=0))
    np.testing.assert_allclose(found.squares, (off**2).sum(axis=0))


@pytest.mark.parametrize("weighted", [False, True])
def test_appended_rows_are_all_at_once(weighted: bool) -> None:
    X, y, w = rows()
    whole = moments(X, y, w if weighted else None)
    parts = [moments(X[i : i + 130], y[i : i + 130], w[i : i + 130] if weighted else None) for i in range(0, N, 130)]
    summed = Moments.zero(X[0], K)
    for i in range(0, N, 77):
        summed.add(X[i : i + 77], y[i : i + 77], w[i : i + 77] if weighted else None)
    assert_same(summed, whole)
    assert_same(parts[0] + parts[1] + parts[2] + parts[3], whole)  # whose centres differ
    assert_same((whole - parts[2]) + parts[2], whole)
    assert_same((whole - parts[0] - parts[2] - parts[3]).about(parts[1].center), parts[1], rtol=1e-8)


def test_a_far_mean_costs_no_digits() -> None:
    X, y, _ = rows()
    far = (X.astype(np.float64) + 1e4).astype(np.float32)
    exact = far.astype(np.float64) - far.mean(axis=0, dtype=np.float64)
    found = task_moments(Folds(X=ArrayFeatures(far), y=y, n_classes=K, train=(), val=()).task(np.arange(N)))
    about = found.about(far.mean(axis=0, dtype=np.float64))
    np.testing.assert_allclose(about.scatter, exact.T @ exact, rtol=1e-9, atol=1e-9 * (exact**2).sum())


@pytest.mark.parametrize("shift", [0.0, 1e3])
def test_their_statistics_are_those_of_the_columns(shift: float) -> None:
    X, y, w = rows(mean=shift)
    X[:, 3] = 7.25  # constant
    X[:, 4] *= np.float32(2.0**-40)
    mean, scale = column_statistics(ArrayFeatures(X))
    for weights in (None, w):  # the standardisation knows no weights
        got_mean, got_scale = moments(X, y, weights).statistics()
        np.testing.assert_allclose(got_mean, mean, rtol=2e-7)
        np.testing.assert_allclose(got_scale, scale, rtol=2e-7)
    Z = (X.astype(np.float64) - mean) / scale
    np.testing.assert_allclose(moments(X, y).standardized(mean, scale).scatter, Z.T @ Z, atol=1e-8 * N)


@dataclass(frozen=True, eq=False)
class Counted(ArrayFeatures):
    """Says how many of its rows were read."""

    read: list[int]

    def block(self, start: int, stop: int) -> np.ndarray:
        self.read.append(stop - start)
        return super().block(start, stop)

    def load(self) -> np.ndarray:
        raise AssertionError("these are to be read in blocks")


def split(n: int, kind: str) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    order = np.random.default_rng(1).permutation(n)
    parts = [np.sort(part) for part in np.array_split(order, 5)]
    val = parts[:1] if kind == "one" else parts
    train = [np.setdiff1d(np.arange(n), part) for part in val]
    if kind == "overlapping":  # more sets of folds than folds
        rng = np.random.default_rng(2)
        train = [np.sort(rng.choice(n, n // 2, replace=False)) for _ in val]
    return tuple(train), tuple(val)


@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("kind", ["one", "several", "overlapping"])
def test_one_pass_serves_all_folds(kind: str, class_weight: str | None) -> None:
    X, y, _ = rows()
    y = np.minimum(y, np.random.default_rng(3).integers(0, K, N))  # unequal classes
    train, val = split(N, kind)
    read: list[int] = []
    folds = Folds(X=Counted(X, read), y=y, n_classes=K, train=train, val=val, class_weight=class_weight)
    found = fold_moments(folds)
    assert sum(read) == N + N  # the first 1,024 rows, for the centre, and all rows once
    for f, one in enumerate(found):
        weights = folds.task(train[f]).weights
        assert (weights is None) == (class_weight is None)
        assert_same(one, moments(X[train[f]], y[train[f]], weights, one.center), rtol=1e-9)


def test_views_are_rows() -> None:
    X, y, _ = rows(60)
    train, val = split(60, "several")
    many = viewed(X, 3, noise=0.5, streamed=True)
    folds = Folds(X=many, y=y, n_classes=K, train=train, val=val)
    for f, one in enumerate(fold_moments(folds)):
        taken = many.values[train[f]].reshape(-1, D)
        assert_same(one, moments(taken, np.repeat(y[train[f]], 3), None, one.center))
        assert_same(one, task_moments(folds.task(train[f])).about(one.center))


@dataclass(frozen=True, eq=False)
class Endless(ArrayFeatures):
    """The same few rows over and over: many, and never in memory."""

    n_rows: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.n_rows, self.values.shape[1]

    def block(self, start: int, stop: int) -> np.ndarray:
        return self.values[np.arange(start, stop) % len(self.values)]

    def take(self, rows: np.ndarray) -> Endless:
        assert len(rows) == self.n_rows
        return self

    def load(self) -> np.ndarray:
        raise AssertionError("these are to be read in blocks")


@pytest.mark.parametrize("name", ["ridge", "lda", "centroid"])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_memory_does_not_grow_with_the_rows(name: str, class_weight: str | None) -> None:
    def peak(n: int) -> tuple[int, np.ndarray]:
        rng = np.random.default_rng(0)
        y = np.tile(rng.integers(0, 50, 1000), n // 1000)
        X = Endless(rng.normal(size=(1000, 64)).astype(np.float32), n)
        task = Folds(X=X, y=y, n_classes=50, train=(), val=(), class_weight=class_weight).task(np.arange(n))
        tracemalloc.start()
        head = CLASSIFIERS[name].fit(CLASSIFIERS[name].chains(n, 64, n)[0][0], task).head
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return held, head.scores(X.values)

    few, scores = peak(20_000)
    many, again = peak(200_000)  # 51 MB as float32
    assert many < 1.2 * few < 40e6
    np.testing.assert_allclose(again, scores, atol=0.01 * np.abs(scores).max())  # alpha means less with more rows
