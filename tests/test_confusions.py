"""The most confused pairs against a table made by hand."""

from __future__ import annotations

import numpy as np

from heads.evidence.confusions import Confusion, most_confused
from heads.evidence.metrics import confusion

Y = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
PRED = np.array([1, 1, 0, 2, 1, 0, 0, 2, 0, 2])
IDS = np.array([f"row{i}" for i in range(10)])


def test_most_frequent_first_then_class_order() -> None:
    assert most_confused(Y, PRED, IDS, 4) == [
        Confusion(true=0, predicted=1, count=2, share=0.5, examples=("row0", "row1")),
        Confusion(true=1, predicted=0, count=2, share=2 / 3, examples=("row5", "row6")),
        Confusion(true=0, predicted=2, count=1, share=0.25, examples=("row3",)),
        Confusion(true=2, predicted=0, count=1, share=1 / 3, examples=("row8",)),
    ]


def test_the_surest_mistakes_are_the_examples() -> None:
    n = 6
    scores = np.zeros((n, 3), np.float32)
    scores[:, 2] = [1, 40, 3, 80, 60, 2]  # from 40 on the probability is 1 in float32, and yet they are told apart
    scores[4] += 1000  # a large score is not a sure one
    (found,) = most_confused(np.zeros(n, int), np.full(n, 2), list("abcdef"), 3, scores=scores)
    assert found.examples == ("d", "e", "b")
    (found,) = most_confused(np.zeros(n, int), np.full(n, 2), list("abcdef"), 3, scores=scores, n_examples=1)
    assert found.examples == ("d",)


def test_limits_and_nothing_wrong() -> None:
    assert len(most_confused(Y, PRED, IDS, 4, limit=2)) == 2
    assert most_confused(Y, Y, IDS, 4) == []


def test_counts_are_those_of_the_confusion_matrix() -> None:
    rng = np.random.default_rng(0)
    y, pred = rng.integers(0, 7, 500), rng.integers(0, 7, 500)
    matrix = confusion(y, pred, 7)
    found = most_confused(y, pred, np.arange(500).astype(str), 7, limit=100)
    assert {(each.true, each.predicted): each.count for each in found} == {
        (t, p): matrix[t, p] for t in range(7) for p in range(7) if t != p and matrix[t, p]
    }
    counts = [each.count for each in found]
    assert counts == sorted(counts, reverse=True)
    for each in found:
        assert all(y[int(i)] == each.true and pred[int(i)] == each.predicted for i in each.examples)
