"""Pairs above a threshold: all of them, whatever the blocks, and the most similar where there are too many."""

from __future__ import annotations

import numpy as np
import pytest

from heads.audit.directions import Directions, about_mean, about_origin
from heads.audit.similar_pairs import similar_pairs
from heads.features import ArrayFeatures
from heads.neighbors import normalized


def clustered(n: int, d: int, n_centers: int, spread: float) -> Directions:
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(n_centers, d))
    X = centers[rng.integers(0, n_centers, n)] + spread * rng.normal(size=(n, d))
    return about_mean(ArrayFeatures(X.astype(np.float32)))


def all_pairs(X: Directions, threshold: float) -> dict[tuple[int, int], float]:
    rows = X.load().astype(np.float64)
    cosine = rows @ rows.T
    i, j = np.triu_indices(len(rows), 1)
    above = cosine[i, j] >= threshold
    return {(a, b): c for a, b, c in zip(i[above].tolist(), j[above].tolist(), cosine[i, j][above], strict=True)}


@pytest.mark.parametrize(("d", "threshold"), [(8, 0.95), (100, 0.9), (300, 0.6), (300, 0.943)])
def test_all_pairs_are_found(monkeypatch: pytest.MonkeyPatch, d: int, threshold: float) -> None:
    monkeypatch.setattr("heads.audit.similar_pairs._ROWS", 64)
    X = clustered(500, d, 120, 0.25)
    expected = all_pairs(X, threshold)
    found = similar_pairs(X, threshold)
    pairs = list(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert expected
    assert len(set(pairs)) == len(pairs) == found.n_found
    unsure = {pair for pair, cosine in expected.items() if abs(cosine - threshold) < 1e-5}
    assert set(pairs) | unsure == expected.keys() | unsure
    np.testing.assert_allclose(found.cosine, [expected[pair] for pair in pairs], atol=1e-5)
    assert (np.diff(found.cosine) <= 0).all()
    assert (found.first < found.second).all()


def test_the_sketch_spares_most_products() -> None:
    X = clustered(1500, 300, 300, 0.1)
    found = similar_pairs(X, 0.9)
    assert found.n_found <= found.n_computed < 1500 * 1499 / 2 / 20


def test_of_too_many_pairs_the_most_similar_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heads.audit.similar_pairs._ROWS", 50)
    X = clustered(300, 20, 10, 0.2)
    whole, some = similar_pairs(X, 0.8), similar_pairs(X, 0.8, limit=100)
    assert len(some) == 100 < len(whole)
    assert some.n_found == whole.n_found == len(whole)
    np.testing.assert_array_equal(some.first, whole.first[:100])
    np.testing.assert_array_equal(some.second, whole.second[:100])


def test_directions_are_read_a_block_at_a_time() -> None:
    X = np.random.default_rng(0).normal(3, 1, (40, 6)).astype(np.float32)
    centred = about_mean(ArrayFeatures(X))
    np.testing.assert_allclose(centred.load(), normalized(X - X.mean(axis=0)), atol=1e-6)
    np.testing.assert_allclose(centred.take(np.array([7, 3])).block(0, 2), centred.load()[[7, 3]])
    np.testing.assert_allclose(about_origin(ArrayFeatures(X)).load(), normalized(X))
