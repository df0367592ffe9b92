"""Compare the features of a few shipped pictures with those recorded in a cache, to notice drift.

Each cache holds what its own stack made of them: library versions, decoder, weights, precision and machine all have
their part in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.cache.cache_file import Cache

Array = NDArray[Any]

#: The largest ||now - then|| / ||then|| of a picture's features that counts as the same, by precision.
TOLERANCE = {"fp32": 1e-3, "fp16": 5e-3, "bf16": 3e-2, "int8": 3e-2}
#: The same where the cache was made by another engine than the one that is at hand.
ACROSS_ENGINES = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 0.1, "int8": 0.5}


@dataclass(frozen=True)
class Canary:
    """What one stack made of the pictures.

    Attributes:
        ids: their names.
        features: (K, *row_shape) in the cache's type.
        pixels: (K, 16) uint8 digests of the pictures as the network saw them: decoded, resized and cropped, uint8.
    """

    ids: tuple[str, ...]
    features: Array
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class Drift:
    """How far two stacks are apart.

    Attributes:
        relative: ||now - then|| / ||then||, the largest of all pictures; infinite where one is not comparable.
        picture: the picture where it is largest.
        pixels: the pictures that the network saw otherwise than then.
        tolerance: what counts as the same.
    """

    relative: float
    picture: str
    pixels: tuple[str, ...]
    tolerance: float

    @property
    def is_drift(self) -> bool:
        """Whether features are too far apart to be used together."""
        return not self.relative <= self.tolerance

    def __str__(self) -> str:
        changed = f"differ ({', '.join(self.pixels)})" if self.pixels else "agree"
        return (
            f"features of {self.picture} differ by {self.relative:.2g} of their norm (tolerance {self.tolerance:g}); "
            f"the decoded and resized pictures {changed}"
        )


def stored_canary(cache: Cache) -> Canary:
    """What a cache holds."""
    ids = tuple(name.decode(errors="replace") for name in cache.canary["ids"].read().tolist())
    return Canary(ids, cache.canary["features"].read(), cache.canary["pixels"].read())


def compare(then: Canary, now: Canary, *, precision: str, across_engines: bool = False) -> Drift:
    """How far today's features are from a cache's, of the same engine unless told otherwise."""
    tolerance = (ACROSS_ENGINES if across_engines else TOLERANCE)[precision]
    if then.ids != now.ids or then.features.shape != now.features.shape:
        return Drift(float("inf"), "the pictures themselves", (), tolerance)
    changed = (then.pixels != now.pixels).any(axis=1)
    before, after = (canary.features.reshape(len(then.ids), -1).astype(np.float64) for canary in (then, now))
    same = (before == after) | (np.isnan(before) & np.isnan(after))
    with np.errstate(invalid="ignore", divide="ignore"):
        distance = np.linalg.norm(np.where(same, 0, after - before), axis=1)
        relative = np.where(distance == 0, 0, distance / np.linalg.norm(before, axis=1))
    relative = np.where(np.isnan(relative), np.inf, relative)
    worst = int(relative.argmax())
    return Drift(float(relative[worst]), then.ids[worst], tuple(np.array(then.ids)[changed].tolist()), tolerance)
