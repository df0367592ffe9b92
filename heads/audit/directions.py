"""Features in; the same rows at length 1, whose products are cosines, about their common mean or about the origin, out.

Features that follow a ReLU all point much the same way. About the mean, cosines tell single images apart; about the
origin, they tell whether an image has what the others have in common.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from heads.features import Features
from heads.neighbors import normalized
from heads.standardization import Floats, Labels, column_statistics


@dataclass(frozen=True, eq=False, kw_only=True)
class Directions(Features):
    """Rows (N, D) of ``of``, less ``mean`` (D,), at length 1; a row that is the mean itself is all zeros."""

    of: Features
    mean: Floats

    @property
    def shape(self) -> tuple[int, int]:
        return self.of.shape

    def block(self, start: int, stop: int) -> Floats:
        return normalized(self.of.block(start, stop) - self.mean)

    def take(self, rows: Labels) -> Directions:
        return replace(self, of=self.of.take(rows))


def about_mean(X: Features) -> Directions:
    """The plain view of the features, about its mean."""
    plain = X.view(0)
    return Directions(of=plain, mean=column_statistics(plain)[0])


def about_origin(X: Features) -> Directions:
    """The plain view of the features as they are."""
    return Directions(of=X.view(0), mean=np.zeros(X.shape[1], np.float32))


def spread(numbers: int, of: int) -> Labels:
    """So many row numbers of all, evenly apart, int64, ascending; all where there are no more."""
    return np.unique(np.linspace(0, of - 1, min(numbers, of)).astype(np.int64))
