"""The heads with an RBF kernel: support vectors kept exactly, or a linear classifier on kernel values to landmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from heads.predictors import ABSENT, Doubles, Head, Scores, scale_fault
from heads.standardization import Floats, Labels, standardized


def rbf(X: Floats, vectors: Floats, gamma: float) -> Floats:
    """exp(-gamma * squared distance) of each row of X (N, D) to each row of vectors (S, D), float32 (N, S)."""
    K = X @ vectors.T
    K *= -2.0
    K += np.einsum("ij,ij->i", X, X)[:, None]
    K += np.einsum("ij,ij->i", vectors, vectors)
    np.maximum(K, 0.0, out=K)
    K *= -gamma
    return np.exp(K, out=K)


@dataclass(frozen=True, eq=False, kw_only=True)
class SupportVectorHead(Head):
    """An RBF support vector machine, one against one, with scikit-learn's votes (decision_function_shape="ovr").

    `vectors` (S, D) are the support vectors, standardised and sorted by class, `counts` (P,) how many each class in
    `present` (P,) has, `dual_coef` (Q, S) with Q = P - 1 as libsvm lays it out, `intercept` (R,) one a pair (i, j), i <
    j. A score is the number of pairs won plus the class's summed decision values squeezed into (-1/3, 1/3).
    """

    KIND = "support_vectors"
    LAYOUT: ClassVar = {
        "mean": ("float32", "D"),
        "scale": ("float32", "D"),
        "vectors": ("float32", "SD"),
        "dual_coef": ("float64", "QS"),
        "intercept": ("float64", "R"),
        "counts": ("int64", "P"),
        "present": ("int64", "P"),
        "gamma": ("float64", ""),
        "n_classes": ("int64", ""),
    }
    mean: Floats
    scale: Floats
    vectors: Floats
    dual_coef: Doubles
    intercept: Doubles
    counts: Labels
    present: Labels
    gamma: float
    n_classes: int
    probabilistic = False

    @property
    def n_parameters(self) -> int:
        return self.dual_coef.size + self.intercept.size

    def _block(self, features: Floats) -> Scores:
        kernel = rbf(standardized(features, self.mean, self.scale), self.vectors, self.gamma).astype(np.float64)
        n, n_present = len(features), len(self.present)
        ends = np.cumsum(self.counts)
        parts = [kernel[:, e - c : e] @ self.dual_coef[:, e - c : e].T for e, c in zip(ends, self.counts, strict=True)]
        votes, total = np.zeros((n, n_present)), np.zeros((n, n_present))
        pair = 0
        for i in range(n_present):
            for j in range(i + 1, n_present):
                decision = parts[i][:, j - 1] + parts[j][:, i] + self.intercept[pair]
                votes[:, i] += decision >= 0
                votes[:, j] += decision < 0
                total[:, i] += decision
                total[:, j] -= decision
                pair += 1
        scores = np.full((n, self.n_classes), ABSENT)
        scores[:, self.present] = votes + total / (3 * (np.abs(total) + 1))
        return scores

    def _fault(self) -> str:
        p = len(self.present)
        if p < 2 or len(self.dual_coef) != p - 1 or len(self.intercept) != p * (p - 1) // 2:
            return f"dual_coef {self.dual_coef.shape} and intercept {self.intercept.shape} do not fit {p} classes"
        n_vectors = len(self.vectors)
        if self.counts.min() < 0 or self.counts.max() > n_vectors or self.counts.sum() != n_vectors:
            return f"counts add up to {self.counts.sum()}, there are {len(self.vectors)} vectors"
        if self.present.min() < 0 or self.present.max() >= self.n_classes:
            return f"present names classes outside 0..{self.n_classes - 1}"
        if len(np.unique(self.present)) < p:
            return "present names a class twice"
        return scale_fault(self.scale)


@dataclass(frozen=True, eq=False, kw_only=True)
class LandmarkHead(Head):
    """A linear classifier on RBF kernel values to a few landmark rows (Nystroem): scores float64 = K @ weight.T + bias.

    `landmarks` (S, D) are standardised training rows; the Nystroem normalisation is multiplied into `weight` (C, S).
    """

    KIND = "landmarks"
    LAYOUT: ClassVar = {
        "mean": ("float32", "D"),
        "scale": ("float32", "D"),
        "landmarks": ("float32", "SD"),
        "weight": ("float64", "CS"),
        "bias": ("float64", "C"),
        "gamma": ("float64", ""),
    }
    mean: Floats
    scale: Floats
    landmarks: Floats
    weight: Doubles
    bias: Doubles
    gamma: float
    probabilistic = False

    @property
    def n_classes(self) -> int:
        return len(self.bias)

    @property
    def n_parameters(self) -> int:
        return self.weight.size + self.bias.size

    def _block(self, features: Floats) -> Scores:
        kernel = rbf(standardized(features, self.mean, self.scale), self.landmarks, self.gamma)
        return kernel.astype(np.float64) @ self.weight.T + self.bias

    def _fault(self) -> str:
        return scale_fault(self.scale)
