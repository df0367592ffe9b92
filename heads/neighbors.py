"""The k-nearest-neighbour head: stored training features vote on new ones by cosine similarity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from heads.predictors import Doubles, Head, Scores
from heads.standardization import Floats, Labels

_QUERIES = 2048  # rows compared at once
_BANK = 32768  # with so many stored rows
_FLOOR = float(np.finfo(np.float64).eps)  # smallest probability a vote gives


def normalized(X: Floats) -> Floats:
    """Rows divided by their Euclidean length, float32; a row of zeros stays zero."""
    length = np.sqrt(np.einsum("ij,ij->i", X, X, dtype=np.float64))
    return (X / np.maximum(length, 1e-12)[:, None]).astype(np.float32)


def neighbor_votes(similarities: Floats, labels: Labels, *, n_classes: int, temperature: float) -> Doubles:
    """Log of each class's share of the votes exp(similarity / temperature) of the neighbours (N, k); (N, n_classes).

    The weighted vote of Wu et al. 2018 (arXiv:1805.01978, section 3.4) and Caron et al. 2021 (DINO). A class without a
    vote gets the smallest probability, float64's epsilon.
    """
    n = len(labels)
    weights = np.exp((similarities - similarities.max(axis=1, keepdims=True)).astype(np.float64) / temperature)
    cells = labels + np.arange(n)[:, None] * n_classes
    votes = np.bincount(cells.ravel(), weights.ravel(), minlength=n * n_classes).reshape(n, n_classes)
    return np.log(np.maximum(votes / votes.sum(axis=1, keepdims=True), _FLOOR))


@dataclass(frozen=True, eq=False, kw_only=True)
class NeighborHead(Head):
    """The k most similar training rows (cosine) vote with weight exp(similarity / temperature); see `neighbor_votes`.

    `bank` holds the training features with rows of length 1, (S, D); `labels` is (S,). Nothing is learned.
    """

    KIND = "neighbors"
    LAYOUT: ClassVar = {
        "bank": ("float32", "SD"),
        "labels": ("int64", "S"),
        "k": ("int64", ""),
        "temperature": ("float64", ""),
        "n_classes": ("int64", ""),
    }
    bank: Floats
    labels: Labels
    k: int
    temperature: float
    n_classes: int
    probabilistic = True
    n_parameters = 0

    def neighbors(self, features: Floats, k: int) -> tuple[Floats, Labels]:
        """Similarities (descending) and labels of the k stored rows nearest to each of the features (N, D)."""
        found: list[tuple[Floats, Labels]] = []
        for start in range(0, len(features), _QUERIES):
            query = normalized(features[start : start + _QUERIES])
            best = np.empty((len(query), 0), np.float32)
            rows = np.empty((len(query), 0), np.int64)
            for first in range(0, len(self.bank), _BANK):
                near = query @ self.bank[first : first + _BANK].T
                if near.shape[1] > k:
                    column = np.argpartition(near, -k, axis=1)[:, -k:]
                    near = np.take_along_axis(near, column, axis=1)
                else:
                    column = np.broadcast_to(np.arange(near.shape[1]), near.shape)
                best = np.concatenate([best, near], axis=1)
                rows = np.concatenate([rows, column + first], axis=1)
                order = np.lexsort((rows, -best), axis=1)[:, :k]
                best, rows = np.take_along_axis(best, order, axis=1), np.take_along_axis(rows, order, axis=1)
            found.append((best, self.labels[rows]))
        if len(found) == 1:
            return found[0]
        return np.concatenate([s for s, _ in found]), np.concatenate([c for _, c in found])

    def _block(self, features: Floats) -> Scores:
        if not len(features):
            return np.empty((0, self.n_classes))
        similarities, labels = self.neighbors(features, self.k)
        return neighbor_votes(similarities, labels, n_classes=self.n_classes, temperature=self.temperature)

    def _fault(self) -> str:
        if not 1 <= self.k <= len(self.bank):
            return f"k is {self.k}, expected 1 to {len(self.bank)}, the stored rows"
        if self.labels.min() < 0 or self.labels.max() >= self.n_classes:
            return f"labels are outside 0..{self.n_classes - 1}"
        return "" if self.temperature > 0 else f"temperature is {self.temperature}, expected more than 0"
