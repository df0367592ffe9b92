"""Run images through the trunk in passes of one shape, and round features to the type that is stored."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featcache.common.errors import UserError
from featcache.engines.backends import Forward


@dataclass(frozen=True, kw_only=True)
class TrunkPasses:
    """How groups of rows go through the trunk.

    Attributes:
        forward: the trunk.
        device: where it computes.
        rows: in a group, the last one of a split excepted.
        views: of each row.
        row_shape: of a row's features.
        storage: their type in the cache.
        seconds: that it took so far: ``transfer`` to the device, and ``forward``, with the way back.
    """

    forward: Forward
    device: torch.device
    rows: int
    views: int
    row_shape: tuple[int, ...]
    storage: str
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def features(self, images: Tensor) -> NDArray[np.float32]:
        """(n, V, 1 or 3, S, S) uint8 to (n, *row_shape) float32; n is at most ``rows``, and less is padded."""
        n_rows, images = len(images), images.flatten(0, 1)
        padding = self.rows * self.views - len(images)
        if padding:
            images = torch.cat([images, images.new_zeros(padding, *images.shape[1:])])
        begun = time.perf_counter()
        if self.device.type != "cpu":
            images = images.to(self.device, non_blocking=True)
            if self.device.type == "cuda":  # else the copy would count as part of the forward pass
                torch.cuda.synchronize(self.device)
        there = time.perf_counter()
        features = self.forward(images).numpy().reshape(self.rows, *self.row_shape)[:n_rows]
        self.seconds["transfer"] += there - begun
        self.seconds["forward"] += time.perf_counter() - there
        return features

    def stored(self, features: NDArray[np.float32]) -> NDArray[np.floating]:
        """The same in the type that the cache stores. Raises UserError where one does not fit."""
        largest = np.abs(features, where=np.isfinite(features), out=np.zeros_like(features)).max()
        if largest > np.finfo(self.storage).max:
            raise UserError(f"a feature of {largest:.3g} is beyond {self.storage}: take --storage float32")
        return features.astype(self.storage)
