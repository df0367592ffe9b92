"""Features with several views of each image, in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from heads.features import Features


@dataclass(frozen=True, eq=False)
class ViewedFeatures(Features):
    """Rows in memory, float32 (N, V, D). `load` is refused where `streamed`: only blocks are read then."""

    values: np.ndarray
    streamed: bool = False

    @property
    def n_views(self) -> int:  # type: ignore[override]
        return self.values.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[2]

    def block(self, start: int, stop: int) -> np.ndarray:
        return self.values[start:stop, 0]

    def take(self, rows: np.ndarray) -> Features:
        return ViewedFeatures(self.values[rows], self.streamed)

    def view(self, number: int) -> Features:
        return ViewedFeatures(self.values[:, number : number + 1], self.streamed)

    def expanded(self) -> Features:
        return ViewedFeatures(self.values.reshape(-1, 1, self.shape[1]), self.streamed)

    def load(self) -> np.ndarray:
        assert not self.streamed, "these are to be read in blocks"
        return self.values[:, 0]


def viewed(X: np.ndarray, n_views: int = 1, *, noise: float = 0.0, streamed: bool = False) -> ViewedFeatures:
    """Copies of X (N, D) as views, each but the first with some noise."""
    values = np.repeat(X[:, None], n_views, axis=1)
    values[:, 1:] += noise * np.random.default_rng(5).standard_normal(values[:, 1:].shape).astype(np.float32)
    return ViewedFeatures(np.ascontiguousarray(values), streamed)
