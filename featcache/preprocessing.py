"""Pixels of any size in, batches of one size out, by numbers that are all recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from featcache.errors import UsageError
from featcache.images import DECODER, Pixels

if TYPE_CHECKING:
    from torch import Tensor

#: The most pixels of a grey image that is resized as one of four channels; above, that takes longer than one by one.
_PACKED_PIXELS = 128 * 128
#: Images that are resized in one call: the results of more do not stay in the processor's cache until they are cropped.
_AT_ONCE = 16


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
    decoder: str = DECODER

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
            images: each (H, W) or (H, W, 3) uint8; those of one shape are resized at once, best as a stack (N, H, W)
                or (N, H, W, 3).

        Returns:
            (N, 1, S, S) uint8 where all are grey, else (N, 3, S, S) uint8, channels last in memory; S is
            ``image_size``.
        """
        import torch

        alike: dict[tuple[int, ...], list[int]] = {}
        for position, image in enumerate(images):
            alike.setdefault(image.shape, []).append(position)
        channels = 3 if any(len(shape) == 3 for shape in alike) else 1
        # NumPy copies, as torch would wake a team of threads for it, in every thread that reads, and gain nothing.
        fitted = np.empty((len(images), self.image_size, self.image_size, channels), np.uint8)
        for positions in alike.values():
            for start in range(0, len(positions), _AT_ONCE):
                some = positions[start : start + _AT_ONCE]
                if len(some) == 1:
                    stack = images[some[0]][None]  # a photograph is not copied
                else:
                    stack = images[some] if isinstance(images, np.ndarray) else np.stack([images[i] for i in some])
                fitted[some] = self._fit_stack(stack).permute(0, 2, 3, 1).numpy()
        return torch.from_numpy(fitted).permute(0, 3, 1, 2)

    def _fit_stack(self, images: Pixels) -> Tensor:
        """As ``fit``, in any memory order."""
        import torch

        if images.ndim == 3 and images[0].size <= _PACKED_PIXELS:
            return self._fit_packed(images)
        batch = torch.from_numpy(np.require(images, requirements=["C", "W"]))
        return self._fit_batch(batch[:, None] if batch.ndim == 3 else batch.permute(0, 3, 1, 2))

    def _fit_packed(self, images: Pixels) -> Tensor:
        """(N, H, W) to (N, 1, S, S), four grey images as the channels of one: for a third of the time, the same."""
        import torch

        packs = -(-len(images) // 4)
        padded = np.zeros((4 * packs, *images.shape[1:]), np.uint8)
        padded[: len(images)] = images
        packed = np.moveaxis(padded.reshape(packs, 4, *images.shape[1:]), 1, -1)
        fitted = self._fit_batch(torch.from_numpy(np.ascontiguousarray(packed)).permute(0, 3, 1, 2)).numpy()
        apart = np.empty((len(images), 1, self.image_size, self.image_size), np.uint8)
        for channel in range(min(4, len(images))):
            mine = apart[channel::4, 0]
            mine[:] = fitted[: len(mine), channel]
        return torch.from_numpy(apart)

    def _fit_batch(self, batch: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, S, S)."""
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2 import functional as transform

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
