"""Admit engines that are faithful to fp32 eager on a few real images, and time them on these.

No engine embeds a data set before it has been through this.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featcache.common.errors import UserError
from featcache.engines.backends import Forward, prepare
from featcache.engines.fidelity import Fidelity, compare

if TYPE_CHECKING:
    from featcache.embedding.job import Embedding

#: Images that pass through an engine and through the reference.
IMAGES = 16
#: Images that int8 takes its ranges from.
CALIBRATION_IMAGES = 256
#: A rate is timed over at least so many passes, for about so many seconds.
MIN_PASSES, MAX_PASSES, SECONDS = 3, 20, 0.5


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An engine that is set up for one embedding.

    Attributes:
        forward: the trunk as a function.
        setup_s: what setting it up took.
        fidelity: to fp32 eager; None for fp32 eager itself.
        images_per_s: of the forward pass alone, in the probe; None where none was made.
    """

    forward: Forward
    setup_s: float
    fidelity: Fidelity | None = None
    images_per_s: float | None = None

    def to_json(self) -> dict[str, Any]:
        """What the cache records."""
        return {
            "setup_s": round(self.setup_s, 3),
            "fidelity": self.fidelity and self.fidelity.to_json(),
            "probe_images_per_s": self.images_per_s and round(self.images_per_s, 1),
        }


@dataclass(frozen=True)
class Gate:
    """The gate of one data set and backbone; images and reference features are made once, when first needed."""

    embedding: Embedding

    @cached_property
    def images(self) -> Tensor:
        """(n, 1 or 3, S, S) uint8."""
        return spread(self.embedding, IMAGES)

    @cached_property
    def reference(self) -> NDArray[np.float32]:
        """(n, ...) float32: their features by fp32 eager."""
        return self._features(_set_up(self.embedding, "eager", "fp32", self.images[:1]), len(self.images))

    def passed(self, candidate: Embedding, *, timed: bool) -> Prepared:
        """Set a candidate's engine up and try it; its rate, too, where it is to be compared with others'.

        Raises:
            UserError: it can't be had, or is not faithful enough; the message says how far it is off.
        """
        engine, precision, size = candidate.engine, candidate.precision, candidate.pass_images
        if (engine, precision) == ("eager", "fp32") and not timed:
            return set_up(candidate)
        begun = time.perf_counter()
        forward = _set_up(candidate, engine, precision, _repeated(self.images, size))
        setup_s = time.perf_counter() - begun
        fidelity = None
        if (engine, precision) != ("eager", "fp32"):
            fidelity = compare(self.reference, self._features(forward, size), precision=precision)
            if not fidelity.is_faithful:
                way = f"--engine {engine} --precision {precision}"
                raise UserError(f"{way} is not faithful here ({fidelity}): take --precision fp32")
        rate = _rate(forward, _repeated(self.images, size)) if timed else None
        return Prepared(forward=forward, setup_s=setup_s, fidelity=fidelity, images_per_s=rate)

    def _features(self, forward: Forward, size: int) -> NDArray[np.float32]:
        """In passes of the engine's own shape."""
        n = len(self.images)
        padded = _repeated(self.images, -(-n // size) * size)
        return torch.cat([forward(padded[i : i + size]) for i in range(0, n, size)])[:n].numpy()


def set_up(embedding: Embedding) -> Prepared:
    """An embedding's engine without trying it: for pictures that are compared with what a cache holds anyway."""
    begun = time.perf_counter()
    size = embedding.backbone.preprocessing.image_size
    example = torch.zeros(embedding.pass_images, 3, size, size, dtype=torch.uint8)
    forward = _set_up(embedding, embedding.engine, embedding.precision, example)
    return Prepared(forward=forward, setup_s=time.perf_counter() - begun)


def _set_up(embedding: Embedding, engine: str, precision: str, example: Tensor) -> Forward:
    return prepare(
        embedding.backbone.staged.trunk(embedding.cut),
        embedding.backbone.preprocessing,
        engine=engine,
        precision=precision,
        device=embedding.device,
        example=example,
        calibration=spread(embedding, CALIBRATION_IMAGES) if precision == "int8" else None,
    )


def spread(embedding: Embedding, count: int) -> Tensor:
    """Up to so many whole images of the first split, evenly spaced, as the network sees them: (n, C, S, S) uint8."""
    split = next(iter(embedding.dataset.splits.values()))
    read = split.images.read(spread_rows(len(split.ids), count))
    whole = [pixels for position, pixels in enumerate(read.pixels) if position not in read.damaged]
    if not whole:
        raise UserError(
            f"{embedding.dataset.name}: none of the {len(read.pixels)} images that were tried can be decoded"
        )
    return embedding.backbone.preprocessing.fit(whole)


def spread_rows(n_rows: int, count: int) -> list[int]:
    """Up to so many rows of a split, evenly spaced."""
    rows: list[int] = np.unique(np.linspace(0, n_rows - 1, min(count, n_rows)).astype(int)).tolist()
    return rows


def _repeated(images: Tensor, size: int) -> Tensor:
    """So many images: the first ones, or all of them again and again."""
    return images.repeat(-(-size // len(images)), 1, 1, 1)[:size] if size > len(images) else images[:size]


def _rate(forward: Forward, batch: Tensor) -> float:
    seconds: list[float] = []
    while len(seconds) < MIN_PASSES or (sum(seconds) < SECONDS and len(seconds) < MAX_PASSES):
        begun = time.perf_counter()
        forward(batch)
        seconds.append(time.perf_counter() - begun)
    return len(batch) / statistics.median(seconds)
