"""Neighbours are found exactly and in the same order by numpy and torch, and one search serves every candidate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from views import viewed

from heads import nearest as nearest_module
from heads import neighbor_search
from heads.classifiers import CLASSIFIERS
from heads.features import ArrayFeatures
from heads.fitting import Folds
from heads.nearest import nearest
from heads.neighbors import NeighborHead, neighbor_votes, normalized

CPU = torch.device("cpu")
PLACES = [
    None,
    CPU,
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")),
]


def brute(queries: np.ndarray, bank: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The definition: by similarity, then by row."""
    near = queries @ bank.T
    order = np.lexsort((np.broadcast_to(np.arange(len(bank)), near.shape), -near), axis=1)[:, :k]
    return np.take_along_axis(near, order, axis=1), order


def coarse(n: int, d: int, seed: int) -> np.ndarray:
    """Rows of few values, so that many similarities are equal, and sums of their products exact."""
    return np.random.default_rng(seed).integers(-1, 2, (n, d)).astype(np.float32)


@pytest.mark.parametrize("k", [1, 7, 50, 200])
@pytest.mark.parametrize("place", PLACES)
def test_of_equals_the_first_row_is_nearer(
    place: torch.device | str | None, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, bank = coarse(40, 6, 0), coarse(200, 6, 1)
    similarities, rows = brute(queries, bank, k)
    assert len(np.unique(similarities)) < 20  # most are ties
    for n_queries, n_bank in ((2048, 32768), (7, 64), (64, 33)):
        monkeypatch.setattr(nearest_module, "_QUERIES", n_queries)
        monkeypatch.setattr(nearest_module, "_BANK", n_bank)
        found = nearest(queries, bank, k, place=None if place is None else torch.device(place))
        assert (found[0] == similarities).all()
        assert (found[1] == rows).all()
        assert (found[0].dtype, found[1].dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("place", PLACES[1:])
def test_torch_finds_what_numpy_finds(place: torch.device | str) -> None:
    rng = np.random.default_rng(0)
    queries = normalized(rng.normal(size=(50, 32)).astype(np.float32))
    bank = normalized(rng.normal(size=(400, 32)).astype(np.float32))
    for a, b in zip(nearest(queries, bank, 20), nearest(queries, bank, 20, place=torch.device(place)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_no_queries_have_no_neighbours() -> None:
    for place in (None, CPU):
        similarities, rows = nearest(np.empty((0, 3), np.float32), coarse(9, 3, 0), 4, place=place)
        assert similarities.shape == rows.shape == (0, 4)


def digits(n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = np.minimum(rng.integers(0, 4, n), rng.integers(0, 4, n))
    X = rng.normal(size=(n, 16)) + 1.2 * np.eye(4, 16)[y]
    return X.astype(np.float32), y


def folds_of(X: object, y: np.ndarray, class_weight: str | None = None) -> Folds:
    rows = np.arange(len(y))
    val = tuple(rows[f::3] for f in range(3))
    train = tuple(np.setdiff1d(rows, part) for part in val)
    return Folds(X=X, y=y, n_classes=4, train=train, val=val, class_weight=class_weight, device="auto")


def test_a_vote_counts_as_its_row_does() -> None:
    X, y = digits()
    task = folds_of(ArrayFeatures(X), y, "balanced").task(np.arange(len(y)))
    head = CLASSIFIERS["knn"].fit({"k": 25, "temperature": 0.1}, task).head
    new = np.random.default_rng(1).normal(size=(80, 16)).astype(np.float32)
    counts = np.bincount(y)

    def votes(distance: np.ndarray) -> np.ndarray:
        return np.exp((1 - distance) / 0.1)

    # scikit-learn has no class weights here: repeat each row in proportion to them instead
    model = KNeighborsClassifier(n_neighbors=25, metric="cosine", weights=votes).fit(X, y)
    distance, rows = model.kneighbors(new)
    shares = np.stack([(votes(distance) * (y[rows] == c)).sum(axis=1) / counts[c] for c in range(4)], axis=1)
    shares /= shares.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.exp(head.scores(new)), shares, atol=1e-5)
    assert not np.allclose(shares, model.predict_proba(new), atol=0.05)


@pytest.mark.parametrize("on_torch", [False, True])
@pytest.mark.parametrize("n_views", [1, 3])
def test_one_search_serves_every_candidate(n_views: int, on_torch: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = digits(90)
    folds = folds_of(viewed(X, n_views, noise=0.3), y)
    if on_torch:
        monkeypatch.setattr(neighbor_search, "_place", lambda *_: CPU)
    classifier, searches = CLASSIFIERS["knn"], []

    def counted(*arguments: object, **settings: object) -> tuple[np.ndarray, np.ndarray]:
        searches.append(arguments)
        return nearest(*arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(neighbor_search, "nearest", counted)
    chain = classifier.chains(60, 16, 90)[0]
    assert max(params["k"] for params in chain) == 50
    trials = list(classifier.search(chain, folds))
    assert len(trials) == len(chain) > 20
    assert len(searches) == 3 * n_views
    for trial in trials:
        for number in range(3):
            head = trial.fitted[number].head
            assert isinstance(head, NeighborHead)
            assert head.bank.shape == (60 * n_views, 16)
            X_val = folds.fold(number).X_val
            views = [np.exp(head.scores(X_val.view(v).load())) for v in range(n_views)]
            np.testing.assert_allclose(np.exp(trial.scores[number]), np.mean(views, axis=0), atol=1e-5)


def test_more_neighbours_than_rows_are_all_rows() -> None:
    X, y = digits(30)
    classifier, folds = CLASSIFIERS["knn"], folds_of(ArrayFeatures(X), y)
    beyond = classifier.beyond({"k": 20, "temperature": 0.1}, "k", True)
    assert [params["k"] for params in beyond] == [320, 160, 80, 40]
    (trial,) = classifier.search(beyond[:1], folds)
    head = trial.fitted[0].head
    assert isinstance(head, NeighborHead)
    assert head.k == 20 == len(head.bank)
    from heads.fitting import averaged_scores

    np.testing.assert_allclose(trial.scores[0], averaged_scores(head, folds.fold(0).X_val), atol=1e-6)


def test_votes_without_weights_weigh_one() -> None:
    similarities, labels = np.array([[0.9, 0.5, 0.5]], np.float32), np.array([[0, 1, 1]])
    plain = neighbor_votes(similarities, labels, n_classes=3, temperature=1.0)
    ones = neighbor_votes(similarities, labels, n_classes=3, temperature=1.0, weights=np.ones((1, 3)))
    assert (plain == ones).all()
    assert np.exp(plain).sum() == pytest.approx(1)
