"""Measure how faithful a faster way is to the reference, by features of a few real images."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: The least cosine to the reference that an image's features may have, by precision. An angle is what heads see of an
#: error; ``tests/benchmarks/precision_accuracy.py`` measures what these leave of a head's accuracy.
TOLERANCE = {"fp32": 0.9999, "fp16": 0.999, "bf16": 0.98, "int8": 0.9}


@dataclass(frozen=True)
class Fidelity:
    """How far an engine's features are from those of fp32 eager.

    Attributes:
        images: how many were compared.
        cosine_min, cosine_mean: of the angle between an image's two features; -1 where one is not finite or zeros.
        relative_max: the largest ||features - reference|| / ||reference||; None where it is not finite.
        tolerance: the least cosine that is let pass.
    """

    images: int
    cosine_min: float
    cosine_mean: float
    relative_max: float | None
    tolerance: float

    @property
    def is_faithful(self) -> bool:
        return self.cosine_min >= self.tolerance

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        error = "not finite" if self.relative_max is None else f"at most {self.relative_max:.2g}"
        return (
            f"{self.images} images against fp32 eager: cosine at least {self.cosine_min:.5f} (tolerance "
            f"{self.tolerance:g}), relative error {error}"
        )


def compare(reference: NDArray[np.float32], features: NDArray[np.float32], *, precision: str) -> Fidelity:
    """Compare features, (n, ...) float32 both, image by image."""
    expected, found = (part.reshape(len(part), -1).astype(np.float64) for part in (reference, features))
    with np.errstate(invalid="ignore", divide="ignore"):
        length = np.linalg.norm(expected, axis=1)
        cosine = (expected * found).sum(axis=1) / (length * np.linalg.norm(found, axis=1))
        relative = np.linalg.norm(found - expected, axis=1) / length
    same = (expected == found).all(axis=1)
    cosine = np.where(same, 1, np.where(np.isnan(cosine), -1, np.minimum(cosine, 1)))
    relative = np.where(same, 0, np.where(np.isnan(relative), np.inf, relative))
    return Fidelity(
        images=len(expected),
        cosine_min=float(cosine.min()),
        cosine_mean=float(cosine.mean()),
        relative_max=float(relative.max()) if np.isfinite(relative).all() else None,
        tolerance=TOLERANCE[precision],
    )
