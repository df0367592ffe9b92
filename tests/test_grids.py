"""Grids are powers of ten, and go on beyond their ends in their own steps."""

from __future__ import annotations

from heads.classifiers import CLASSIFIERS
from heads.grids import decades, further


def test_decades_are_powers_of_ten() -> None:
    assert decades(-2, 1) == (0.01, 0.1, 1.0, 10.0)
    assert decades(1, -1, 2) == (10.0, 3.2, 1.0, 0.32, 0.1)


def test_a_grid_goes_on_as_it_ends() -> None:
    assert further((1.0, 2.0, 4.0), 4.0, up=True) == (8.0, 16.0, 32.0, 64.0)
    assert further((0.01, 1.0, 10.0), 0.01, up=False) == (1e-4, 1e-6, 1e-8, 1e-10)
    assert further((0.0, 1.0), 1.0, up=True) == (10.0, 100.0, 1e3, 1e4)  # nothing tells the step
    assert further((0.0, 1.0), 0.0, up=False) == ()


def test_grids_go_on_beyond_their_ends() -> None:
    def beyond(name: str, key: str, value: float, *, up: bool, **others: object) -> list[float]:
        best = {key: value, **others}
        found = CLASSIFIERS[name].beyond(best, key, up)
        assert all({**params, key: value} == best for params in found)
        return [params[key] for params in found]

    assert beyond("logreg", "C", 100.0, up=True) == [320.0, 1000.0, 3200.0, 10000.0]
    assert beyond("svm", "C", 1e-6, up=False) == [1e-10, 1e-9, 1e-8, 1e-7]  # strong regularisation first
    assert beyond("ridge", "alpha", 1e7, up=True) == [1e9, 3.2e8, 1e8, 3.2e7]
    assert beyond("ridge", "alpha", 0.01, up=False) == [0.0032, 0.001, 0.00032, 0.0001]
    assert beyond("svm-rbf", "gamma", 1 / 64, up=True, C=1.0) == [0.049, 0.16, 0.49, 1.6]
    assert beyond("svm-rbf", "C", 100.0, up=True, gamma=0.1) == [1e3, 1e4, 1e5, 1e6]
    assert beyond("knn", "k", 200, up=True, temperature=0.1) == [3200, 1600, 800, 400]
    assert beyond("knn", "temperature", 0.003, up=False, k=5) == [0.00095, 0.0003, 9.5e-05, 3e-05]
    assert beyond("linear", "lr", 1e-4, up=False, optimizer="adamw") == [1e-8, 1e-7, 1e-6, 1e-5]
    assert beyond("linear", "weight_decay", 1.0, up=True, optimizer="adamw", lr=1e-3) == [100.0, 10.0]
    # a step of AdamW takes lr * weight_decay of the weights away
    assert beyond("linear", "lr", 0.1, up=True, optimizer="adamw", weight_decay=0.01) == [1.0, 10.0]
    assert beyond("linear", "lr", 0.1, up=True, optimizer="adamw", weight_decay=1.0) == []
    # natural ends, and what is no grid
    assert beyond("lda", "shrinkage", 0.0, up=False) == beyond("lda", "shrinkage", 1.0, up=True) == []
    assert beyond("knn", "k", 1, up=False) == beyond("knn", "temperature", 1.0, up=True) == []
    assert beyond("linear", "weight_decay", 0.0, up=False, optimizer="adamw", lr=1e-3) == []
    assert beyond("mlp", "hidden", 256, up=True, optimizer="adamw") == []
    assert CLASSIFIERS["linear"].beyond({"lr": 0.1, "optimizer": "adamw", "epochs": 7}, "lr", True)[0] == {
        "lr": 1.0,
        "optimizer": "adamw",
    }
