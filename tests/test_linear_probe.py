"""Training side by side is training one by one, and it finds what scikit-learn finds."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from heads import linear_probe
from heads.features import ArrayFeatures
from heads.fitting import Folds
from heads.linear_probe import Member, Trained, learning_rate, train_members
from heads.probes import Probe
from heads.standardization import column_statistics, standardized

SETTINGS = {"n_classes": 10, "schedule_epochs": 4, "batch_size": 64, "device": "cpu"}


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    X, y = load_digits(return_X_y=True)
    X = X.astype(np.float32)
    Z = standardized(X, *column_statistics(ArrayFeatures(X[:600])))
    return Z[:600], y[:600].astype(np.int64), Z[600:900], y[600:900].astype(np.int64)


def train(data: tuple[np.ndarray, ...], members: list[Member], **settings: object) -> list[Trained]:
    X, y, X_val, y_val = data
    return train_members(X, y, members, X_val=X_val, y_val=y_val, **{**SETTINGS, **settings})


@pytest.mark.parametrize("hidden", [None, 16])
def test_neighbours_in_the_grid_change_nothing(digits: tuple[np.ndarray, ...], hidden: int | None) -> None:
    members = [
        Member(optimizer="adamw", lr=1e-3, weight_decay=1.0, hidden=hidden),
        Member(optimizer="sgd", lr=1e-2, weight_decay=0.0, hidden=hidden),
        Member(optimizer="adamw", lr=1e-2, weight_decay=0.0, hidden=hidden and 2 * hidden),
    ]
    together = train(digits, members)
    for member, one in zip(members, together, strict=True):
        (alone,) = train(digits, [member])
        assert alone.epoch == one.epoch
        for name, weight in alone.weights.items():
            np.testing.assert_allclose(one.weights[name], weight, atol=2e-4)
    assert not np.allclose(together[0].weights["weight"], together[1].weights["weight"], atol=1e-3)


def test_the_same_seed_gives_the_same_bits(digits: tuple[np.ndarray, ...]) -> None:
    member = Member(optimizer="adamw", lr=1e-3, weight_decay=0.1, hidden=8)
    first, again, other = (train(digits, [member], seed=seed)[0] for seed in (0, 0, 1))
    assert all((first.weights[k] == again.weights[k]).all() for k in first.weights)
    assert not (first.weights["weight"] == other.weights["weight"]).all()


def test_the_best_epoch_is_kept(digits: tuple[np.ndarray, ...]) -> None:
    X, y, X_val, y_val = digits
    (one,) = train(digits, [Member(optimizer="sgd", lr=0.3, weight_decay=0.0)], schedule_epochs=6)
    assert [h["epoch"] for h in one.history] == [1, 2, 3, 4, 5, 6]
    best = max(one.history, key=lambda h: (h["val_accuracy"], -h["val_loss"]))
    assert one.epoch == best["epoch"]
    accuracy = ((X_val @ one.weights["weight"].T + one.weights["bias"]).argmax(axis=1) == y_val).mean()
    assert accuracy == pytest.approx(best["val_accuracy"])
    # what the refit does: the same schedule, left after the chosen epoch, without validation rows
    (refit,) = train_members(X, y, [one.member], **{**SETTINGS, "schedule_epochs": 6}, epochs=one.epoch, phase="refit")
    assert all((refit.weights[k] == one.weights[k]).all() for k in one.weights)
    assert refit.history[-1]["val_accuracy"] is None
    assert {h["phase"] for h in refit.history} == {"refit"}


def test_one_that_diverges_leaves_the_others_alone(digits: tuple[np.ndarray, ...]) -> None:
    good = Member(optimizer="adamw", lr=1e-3, weight_decay=0.0, hidden=8)
    bad, fine = train(digits, [Member(optimizer="sgd", lr=1e30, weight_decay=0.0, hidden=8), good])
    (alone,) = train(digits, [good])
    assert not bad.finite
    assert fine.finite
    assert fine.history[-1]["val_accuracy"] == pytest.approx(alone.history[-1]["val_accuracy"], abs=0.01)


def test_long_training_reaches_logistic_regression(digits: tuple[np.ndarray, ...]) -> None:
    X, y, X_val, _ = digits
    C = 0.1
    # (1 / n) sum of losses + decay / 2 |w|^2 is logistic regression with decay = 1 / (C n); full batches, no noise
    member = Member(optimizer="sgd", lr=0.2, weight_decay=1 / (C * len(X)))
    (one,) = train_members(X, y, [member], **{**SETTINGS, "batch_size": len(X), "schedule_epochs": 800})
    reference = LogisticRegression(C=C, tol=1e-6, max_iter=2000).fit(X.astype(np.float64), y)
    logits = X_val @ one.weights["weight"].T + one.weights["bias"]
    expected = reference.decision_function(X_val)
    off = logits - expected
    assert np.abs(off - off.mean(axis=1, keepdims=True)).max() < 0.05 * np.abs(expected).max()


def test_the_rate_is_half_a_cosine() -> None:
    rates = [learning_rate(step, peak=0.2, total_steps=100) for step in range(101)]
    assert rates[0] == 0.2
    assert rates[50] == pytest.approx(0.1)
    assert rates[100] == pytest.approx(0.0)
    assert all(a > b for a, b in pairwise(rates))


def test_a_row_that_weighs_twice_is_there_twice(digits: tuple[np.ndarray, ...]) -> None:
    X, y, X_val, _ = digits
    X, y = X[:200], y[:200]
    twice = y < 3
    rows = np.concatenate([np.arange(200), np.flatnonzero(twice)])
    member = Member(optimizer="sgd", lr=0.1, weight_decay=1e-2)
    weights = np.where(twice, 2.0, 1.0)
    weights /= weights.mean()

    def logits(n: int, *data: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        # full batches: no noise, so that only the loss decides
        (one,) = train_members(*data, [member], **{**SETTINGS, "batch_size": n, "schedule_epochs": 30}, weights=weights)
        return X_val @ one.weights["weight"].T + one.weights["bias"]

    weighted, repeated = logits(200, X, y, weights=weights), logits(len(rows), X[rows], y[rows])
    np.testing.assert_allclose(weighted, repeated, atol=1e-3)
    assert np.abs(weighted - logits(200, X, y)).max() > 0.1


def test_an_epoch_draws_one_view_of_each_image(digits: tuple[np.ndarray, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    X, y, _, _ = digits
    X, y = np.repeat(X[:60], 3, axis=0), np.repeat(y[:60], 3)
    X[:, 0] = np.arange(180)  # says which row it is
    seen: list[np.ndarray] = []
    logits = linear_probe._logits

    def watched(x: torch.Tensor, *others: object) -> torch.Tensor:
        seen.append(x[:, 0].numpy().astype(int))
        return logits(x, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(linear_probe, "_logits", watched)
    member = Member(optimizer="sgd", lr=1e-6, weight_decay=0.0)
    train_members(X, y, [member], **{**SETTINGS, "batch_size": 25, "schedule_epochs": 8}, n_views=3)
    assert [len(rows) for rows in seen[:3]] == [25, 25, 10]
    epochs = np.concatenate(seen).reshape(8, 60)
    assert (np.sort(epochs // 3, axis=1) == np.arange(60)).all()
    assert len(np.unique(epochs)) > 160  # of 180: each view in turn


def test_folds_share_the_median_of_their_best_epochs(digits: tuple[np.ndarray, ...]) -> None:
    X, y, _, _ = digits
    X, y = X[:150], y[:150]
    val = tuple(np.arange(f, 150, 3) for f in range(3))
    train = tuple(np.setdiff1d(np.arange(150), rows) for rows in val)
    probe = Probe(members=(Member(optimizer="adamw", lr=3e-3, weight_decay=0.0),), epochs=4, min_steps=30)
    for class_weight in (None, "balanced"):
        folds = Folds(
            X=ArrayFeatures(X), y=y, n_classes=10, train=train, val=val, class_weight=class_weight, device="cpu"
        )
        (trial,) = probe.search(probe.chains(100, 64, 150)[0], folds)
        best = [max(f.history, key=lambda h: (h["val_accuracy"], -h["val_loss"]))["epoch"] for f in trial.fitted]
        assert trial.params["epochs"] == sorted(best)[1]
        assert [len(f.history) for f in trial.fitted] == [trial.params["schedule_epochs"]] * 3
