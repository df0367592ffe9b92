"""Pixels of any size in, batches of one size out, by numbers that are all recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from featcache.errors import UsageError
from featcache.images import Pixels

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How images become a network's input.

    Attributes:
        image_size: the side of the square that the network sees, in pixels.
        resize_size: what the short side is resized to before the centre crop; with ``squash`` both sides become
            ``image_size`` and this plays no part.
        resize: ``crop`` keeps proportions and cuts off the margins, ``squash`` keeps everything and bends proportions.
        interpolation: ``bilinear`` or ``bicubic``, with antialiasing, on 8-bit values (torchvision's resize).
        mean, std: of the red, green and blue channel on the scale 0 to 1.
        decoder: what turned files into pixels.

    Raises:
        UsageError: a number is out of range.
    """

    image_size: int
    resize_size: int
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Literal["crop", "squash"] = "crop"
    antialias: bool = True
    decoder: str = "pillow"

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= 4096:
            raise UsageError(f"--image-size {self.image_size}: expected a whole number of pixels from 1 to 4096")
        if self.resize_size < self.image_size:
            raise UsageError(f"a short side of {self.resize_size} pixels is too short to crop {self.image_size} from")
        for flag, values in (("--mean", self.mean), ("--std", self.std)):
            if len(values) != 3:
                raise UsageError(f"{flag} {','.join(f'{v:g}' for v in values)}: expected 3 numbers, for red,green,blue")
        if min(self.std) <= 0:
            raise UsageError(f"--std {','.join(f'{v:g}' for v in self.std)}: expected numbers above 0")

    def override(
        self,
        *,
        image_size: int | None = None,
        resize: Literal["crop", "squash"] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> Preprocessing:
        """The same with what is given; a new image size keeps the share of the short side that the crop shows."""
        new: dict[str, Any] = {}
        if image_size is not None:
            new["image_size"] = image_size
            new["resize_size"] = max(image_size, round(image_size * self.resize_size / self.image_size))
        if resize is not None:
            new["resize"] = resize
        if mean is not None:
            new["mean"] = tuple(mean)
        if std is not None:
            new["std"] = tuple(std)
        return replace(self, **new)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Preprocessing:
        return cls(**{**data, "mean": tuple(data["mean"]), "std": tuple(data["std"])})

    def fit(self, images: Sequence[Pixels]) -> Tensor:
        """Resize and crop images.

        Args:
            images: each (H, W) or (H, W, 3) uint8; a stack (N, H, W) or (N, H, W, 3) is resized at once.

        Returns:
            (N, 1, S, S) uint8 where all are grey, else (N, 3, S, S) uint8; S is ``image_size``.
        """
        import torch

        if isinstance(images, np.ndarray):
            return self._fit_batch(images)
        fitted = [self._fit_batch(image[None]) for image in images]
        if len({batch.shape[1] for batch in fitted}) > 1:
            fitted = [batch.expand(-1, 3, -1, -1) for batch in fitted]
        return torch.cat(fitted)

    def _fit_batch(self, images: Pixels) -> Tensor:
        import torch
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2 import functional as transform

        batch = torch.from_numpy(np.array(images, order="C"))
        batch = batch[:, None] if batch.ndim == 3 else batch.permute(0, 3, 1, 2)
        size = [self.image_size, self.image_size] if self.resize == "squash" else [self.resize_size]
        mode = InterpolationMode(self.interpolation)
        batch = transform.resize(batch, size, interpolation=mode, antialias=self.antialias)
        return transform.center_crop(batch, [self.image_size, self.image_size])

    def normalise(self, batch: Tensor) -> Tensor:
        """What the network takes: (N, 1 or 3, S, S) uint8 to (N, 3, S, S) float32, channels last in memory."""
        import torch

        mean = torch.tensor(self.mean, device=batch.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=batch.device).view(1, 3, 1, 1)
        values = batch.expand(-1, 3, -1, -1).to(torch.float32, memory_format=torch.channels_last)
        return values.div_(255).sub_(mean).div_(std)
