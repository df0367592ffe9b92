"""The k-nearest-neighbour head: stored training features vote on new ones by cosine similarity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from featcache.common.errors import UserError
from heads.nearest import nearest
from heads.predictors import Doubles, Head, Scores
from heads.standardization import Floats, Labels

_FLOOR = float(np.finfo(np.float64).eps)  # smallest probability a vote gives


def normalized(X: Floats) -> Floats:
    """Rows divided by their Euclidean length, float32; a row of zeros stays zero."""
    length = np.sqrt(np.einsum("ij,ij->i", X, X, dtype=np.float64))
    return (X / np.maximum(length, 1e-12)[:, None]).astype(np.float32)


def neighbor_votes(
    similarities: Floats, labels: Labels, *, n_classes: int, temperature: float, weights: Doubles | None = None
) -> Doubles:
    """Log of each class's share of the votes exp(similarity / temperature) of the neighbours (N, k); (N, n_classes).

    The weighted vote of Wu et al. 2018 (arXiv:1805.01978, section 3.4) and Caron et al. 2021 (DINO); `weights` (N, k)
    multiply the votes. A class without a vote gets the smallest probability, float64's epsilon.
    """
    n = len(labels)
    each = np.exp((similarities - similarities.max(axis=1, keepdims=True)).astype(np.float64) / temperature)
    if weights is not None:
        each *= weights
    cells = labels + np.arange(n)[:, None] * n_classes
    votes = np.bincount(cells.ravel(), each.ravel(), minlength=n * n_classes).reshape(n, n_classes)
    return np.log(np.maximum(votes / votes.sum(axis=1, keepdims=True), _FLOOR))


@dataclass(frozen=True, eq=False, kw_only=True)
class NeighborHead(Head):
    """The k most similar training rows (cosine) vote with weight exp(similarity / temperature); see `neighbor_votes`.

    `bank` holds the training features with rows of length 1, (S, D); `labels` is (S,), `weights` (S,) multiplies a
    row's votes. Nothing is learned.
    """

    KIND = "neighbors"
    LAYOUT: ClassVar = {
        "bank": ("float32", "SD"),
        "labels": ("int64", "S"),
        "weights": ("float64", "S"),
        "k": ("int64", ""),
        "temperature": ("float64", ""),
        "n_classes": ("int64", ""),
    }
    bank: Floats
    labels: Labels
    weights: Doubles
    k: int
    temperature: float
    n_classes: int
    probabilistic = True
    n_parameters = 0

    def scaled(self, temperature: float) -> Head:
        raise UserError("a knn head is not calibrated again: its temperature was chosen on the validation rows already")

    def _block(self, features: Floats) -> Scores:
        if not len(features):
            return np.empty((0, self.n_classes))
        similarities, rows = nearest(normalized(features), self.bank, self.k)
        return neighbor_votes(
            similarities,
            self.labels[rows],
            n_classes=self.n_classes,
            temperature=self.temperature,
            weights=self.weights[rows],
        )

    def _fault(self) -> str:
        if not 1 <= self.k <= len(self.bank):
            return f"k is {self.k}, expected 1 to {len(self.bank)}, the stored rows"
        if self.labels.min() < 0 or self.labels.max() >= self.n_classes:
            return f"labels are outside 0..{self.n_classes - 1}"
        if not (self.weights > 0).all():
            return "weights holds values that are not positive"
        return "" if self.temperature > 0 else f"temperature is {self.temperature}, expected more than 0"
