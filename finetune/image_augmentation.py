"""A batch of 8-bit images in, the same images changed at random out: on whatever device, each image by itself.

Presets, for squares of S x S pixels as preprocessing made them:

- ``none``: nothing.
- ``flip``: mirrored with probability 1/2.
- ``crop``: padded by S / 8 of black (4 pixels at 32, as for CIFAR), cropped at random, then ``flip``.
- ``standard``: a part of 35 to 100 % of the area with proportions of 3:4 to 4:3, resized (as Inception: Szegedy et al.
  2015, arXiv:1409.4842), then ``flip``, then brightness, contrast and saturation changed by up to 20 %.
- ``strong``: ``crop``, then one operation of random strength an image (TrivialAugment: Müller & Hutter 2021,
  arXiv:2103.10158).

What is random is drawn from torch's global generator of the CPU, so that a seed gives the same on every device. It is
drawn for all images of a batch, also where only some are here, so that each has the same whoever has the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  as everyone calls it
from numpy.typing import NDArray
from torch import Tensor

from finetune.settings import Augment

_CROP_SCALE, _CROP_RATIO = (0.35, 1.0), (3 / 4, 4 / 3)
_JITTER = 0.2
#: Shares of red, green and blue in what is seen as grey (ITU-R BT.601), as torchvision has them.
_GREY = (0.2989, 0.587, 0.114)


@dataclass(frozen=True, eq=False, kw_only=True)
class Chance:
    """Random numbers for the images of a batch, some of which are here.

    Attributes:
        n_rows: of the whole batch.
        places: (n,) of those that are here, in it.
    """

    n_rows: int
    places: NDArray[np.int64]

    def uniform(self, low: float, high: float) -> Tensor:
        """(n,) float32."""
        return torch.empty(self.n_rows).uniform_(low, high)[self.places]

    def below(self, end: int) -> Tensor:
        """(n,) int64 from 0 on."""
        return torch.randint(end, (self.n_rows,))[self.places]


def augmented(images: Tensor, augment: Augment, *, chance: Chance | None = None) -> Tensor:
    """Change a batch as a preset says.

    Args:
        images: (n, 1 or 3, S, S) uint8.
        augment: the preset.
        chance: what random numbers they get; None takes them for the whole batch.

    Returns:
        (n, 1 or 3, S, S) uint8 on the same device.
    """
    if augment == "none":
        return images
    chance = chance or Chance(n_rows=len(images), places=np.arange(len(images)))
    if augment == "flip":
        return _flipped(images, chance)
    if augment == "crop":
        return _flipped(_shifted(images, chance), chance)
    if augment == "standard":
        return _jittered(_flipped(_resized_crops(images, chance), chance), chance)
    return _trivially(_flipped(_shifted(images, chance), chance), chance)


def _flipped(images: Tensor, chance: Chance) -> Tensor:
    mirrored = chance.uniform(0, 1).to(images.device) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def _shifted(images: Tensor, chance: Chance) -> Tensor:
    """Padded, and cropped where chance has it."""
    n, _, side, _ = images.shape
    margin = max(1, side // 8)
    padded = F.pad(images, (margin,) * 4)
    top, left = (chance.below(2 * margin + 1).to(images.device) for _ in range(2))
    along = torch.arange(side, device=images.device)
    rows, columns = (top[:, None] + along)[:, :, None], (left[:, None] + along)[:, None, :]
    of_image = torch.arange(n, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[of_image, rows, columns].permute(0, 3, 1, 2)


def _resized_crops(images: Tensor, chance: Chance) -> Tensor:
    """A random part of each image, resized to all of it: always enlarged, so that nothing need be antialiased."""
    area = chance.uniform(*_CROP_SCALE).to(images.device)
    ratio = chance.uniform(*(math.log(end) for end in _CROP_RATIO)).to(images.device).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    x, y = (chance.uniform(-1, 1).to(images.device) * (1 - size) for size in (width, height))
    zero = torch.zeros_like(x)
    maps = torch.stack([torch.stack([width, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    parts = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return parts.round_().clamp_(0, 255).to(torch.uint8)


def _jittered(images: Tensor, chance: Chance) -> Tensor:
    """Brightness, contrast and saturation, in this order, each by a factor of the image's own."""
    brightness, contrast, saturation = (
        chance.uniform(1 - _JITTER, 1 + _JITTER).to(images.device)[:, None, None, None] for _ in range(3)
    )
    values = (images.float() * brightness).clamp_(0, 255)
    values = torch.lerp(_grey(values).mean((1, 2, 3), keepdim=True), values, contrast).clamp_(0, 255)
    values = torch.lerp(_grey(values), values, saturation).clamp_(0, 255)
    return values.round_().to(torch.uint8)


def _grey(values: Tensor) -> Tensor:
    """(n, 1, S, S)."""
    if values.shape[1] == 1:
        return values
    return torch.einsum("nchw,c->nhw", values, torch.tensor(_GREY, device=values.device))[:, None]


def _trivially(images: Tensor, chance: Chance) -> Tensor:
    """Each by a seed of its own: how many numbers one takes depends on what it is dealt."""
    from torchvision.transforms import v2

    change = v2.TrivialAugmentWide()
    changed = []
    seeds = chance.below(1 << 62).tolist()
    with torch.random.fork_rng(devices=[]):
        for image, seed in zip(images.contiguous(), seeds, strict=True):
            torch.default_generator.manual_seed(seed)
            changed.append(change(image))
    return torch.stack(changed)
