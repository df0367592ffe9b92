"""Resize, crop and normalise pixels of any size into batches of one size, by numbers that are all recorded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from featcache.common.errors import UsageError, one_of
from featcache.sources.decoding import DECODER, Pixels

if TYPE_CHECKING:
    from torch import Tensor

#: ``crop`` keeps proportions and cuts off the margins; ``squash`` keeps everything and bends proportions;
#: ``squash-crop`` squashes to ``resize_size`` and cuts off the margins; ``pad`` keeps proportions and everything, on
#: the mean colour.
Resize: TypeAlias = Literal["crop", "squash", "squash-crop", "pad"]
RESIZES: tuple[Resize, ...] = get_args(Resize)

#: The most pixels of a grey image that is resized as one of four channels; above, that takes longer than one by one.
_PACKED_PIXELS = 128 * 128
#: Images that are resized in one call: the results of more do not stay in the processor's cache until they are cropped.
_AT_ONCE = 16
#: Of an image whose sides differ by this factor, only what is shown is resized: 1 x 60,000 pixels would become 256 x
#: 15,360,000 before the crop.
_STRIP = 8
#: The most pixels of such an image after its first side is resized, where all of it is shown.
_STRIP_PIXELS = 1 << 24
#: Beyond this many times the size that it is resized to, a strip is averaged in blocks first (Pillow's reducing_gap).
_STRIP_GAP = 16


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How images become a network's input.

    Attributes:
        image_size: the side of the square that the network sees, in pixels.
        resize_size: what the short side is resized to before the centre crop (black is added where it is less than
            ``image_size``); both sides with ``squash-crop``; the long side with ``pad``. With ``squash`` both sides
            become ``image_size`` and this plays no part.
        resize: one of ``RESIZES``; the last two are timm's ``crop_mode``, squash with a crop fraction, and border.
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
    resize: Resize = "crop"
    antialias: bool = True
    decoder: str = DECODER

    def __post_init__(self) -> None:
        if self.resize not in RESIZES:
            raise one_of("way to resize", str(self.resize), list(RESIZES))
        if not 1 <= self.image_size <= 4096:
            raise UsageError(f"--image-size {self.image_size}: expected a whole number of pixels from 1 to 4096")
        if self.resize_size < 1:
            raise UsageError(f"resizing to {self.resize_size} pixels: expected a whole number from 1 on")
        for flag, values in (("--mean", self.mean), ("--std", self.std)):
            if len(values) != 3:
                raise UsageError(f"{flag} {','.join(f'{v:g}' for v in values)}: expected 3 numbers, for red,green,blue")
        if min(self.std) <= 0:
            raise UsageError(f"--std {','.join(f'{v:g}' for v in self.std)}: expected numbers above 0")

    def override(
        self,
        *,
        image_size: int | None = None,
        resize: Resize | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> Preprocessing:
        """The same with what is given; a new image size keeps the share of the short side that the crop shows."""
        new: dict[str, Any] = {}
        if image_size is not None:
            new["image_size"] = image_size
            new["resize_size"] = max(1, round(image_size * self.resize_size / self.image_size))
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
            (N, 1, S, S) uint8 where all are grey and no coloured margin is added, else (N, 3, S, S) uint8, channels
            last in memory; S is ``image_size``.
        """
        import torch

        alike: dict[tuple[int, ...], list[int]] = {}
        for position, image in enumerate(images):
            alike.setdefault(image.shape, []).append(position)
        channels = 3 if any(len(shape) == 3 for shape in alike) or len(set(self.margin)) > 1 else 1
        # NumPy copies, as torch would wake a team of threads for it, in every thread that reads, and gain nothing.
        fitted = np.empty((len(images), self.image_size, self.image_size, channels), np.uint8)
        for (height, width, *_), positions in alike.items():
            if self._is_strip(height, width):
                for position in positions:
                    fitted[position] = self._fit_strip(images[position])
                continue
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

        if images.ndim == 3 and images[0].size <= _PACKED_PIXELS and len(set(self.margin)) == 1:
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

        mode = InterpolationMode(self.interpolation)
        resized = list(self._resized(*batch.shape[2:]))
        batch = transform.resize(batch, resized, interpolation=mode, antialias=self.antialias)
        missing = [max(0, self.image_size - side) for side in resized]
        if self.resize == "pad" and any(missing):
            top, left = (pixels // 2 for pixels in missing)
            bottom, right = missing[0] - top, missing[1] - left
            fill: float | list[float] = self.margin[0]
            if len(set(self.margin)) > 1:
                fill, batch = list(self.margin), batch.expand(-1, 3, -1, -1)
            batch = transform.pad(batch, [left, top, right, bottom], fill=fill)
        return transform.center_crop(batch, [self.image_size, self.image_size])

    @property
    def margin(self) -> tuple[int, int, int]:
        """The colour of what is added to an image: the mean, as timm has it, or torchvision's black."""
        if self.resize != "pad":
            return 0, 0, 0
        red, green, blue = (round(255 * value) for value in self.mean)
        return red, green, blue

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing, before margins are cut off or added."""
        side = self.resize_size
        if self.resize == "squash":
            return self.image_size, self.image_size
        if self.resize == "squash-crop":
            return side, side
        if self.resize == "pad":  # in timm's arithmetic
            ratio = max(height / side, width / side)
            return max(1, round(height / ratio)), max(1, round(width / ratio))
        long = int(side * max(height, width) / min(height, width))
        return (side, long) if height <= width else (long, side)

    def _is_strip(self, height: int, width: int) -> bool:
        short, long = sorted((height, width))
        whole = self.resize != "crop" and long * self.image_size <= _STRIP_PIXELS
        return self.antialias and long >= _STRIP * short and not whole

    def _fit_strip(self, image: Pixels) -> Pixels:
        """(H, W) or (H, W, 3) to (S, S, 1 or 3): Pillow resizes no more of an image than the crop shows.

        The result is that of a resize of the whole up to rounding: 1 level, or 2 where an edge overshoots.
        """
        from PIL import Image

        height, width = image.shape[:2]
        if self.resize != "crop" and height > width:  # Pillow resizes along the width first: to be the long side
            return self._fit_strip(image.swapaxes(0, 1)).swapaxes(0, 1)
        resized = self._resized(height, width)
        parts, box, shown = [], [], []
        for side, new_side in zip((height, width), resized, strict=True):
            start = max(0, round((new_side - self.image_size) / 2))
            stop = min(new_side, start + self.image_size)
            reach = math.ceil(2 * max(side / new_side, 1)) + 1  # of the bicubic filter
            first = max(0, math.floor(start * side / new_side) - reach)
            parts.append(slice(first, math.ceil(stop * side / new_side) + reach))
            box.append((start * side / new_side - first, stop * side / new_side - first))
            shown.append(stop - start)
        (top, bottom), (left, right) = box
        resample = Image.Resampling.BICUBIC if self.interpolation == "bicubic" else Image.Resampling.BILINEAR
        resized_part = Image.fromarray(np.ascontiguousarray(image[tuple(parts)])).resize(
            (shown[1], shown[0]), resample, box=(left, top, right, bottom), reducing_gap=_STRIP_GAP
        )
        pixels = np.asarray(resized_part).reshape(*shown, -1)
        margin = self.margin if pixels.shape[2] == 3 or len(set(self.margin)) > 1 else self.margin[:1]
        fitted = np.empty((self.image_size, self.image_size, len(margin)), np.uint8)
        fitted[:] = margin
        above, before = ((self.image_size - side) // 2 for side in shown)
        fitted[above : above + shown[0], before : before + shown[1]] = pixels
        return fitted

    def normalise(self, batch: Tensor) -> Tensor:
        """What the network takes: (N, 1 or 3, S, S) uint8 to (N, 3, S, S) float32, channels last in memory."""
        import torch

        mean = torch.tensor(self.mean, device=batch.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=batch.device).view(1, 3, 1, 1)
        values = batch.expand(-1, 3, -1, -1).to(torch.float32, memory_format=torch.channels_last)
        return values.div_(255).sub_(mean).div_(std)
