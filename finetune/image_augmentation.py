"""A batch of 8-bit images in, the same images changed at random out: on whatever device, each image by itself.

Presets, for squares of S x S pixels as preprocessing made them:

- ``none``: nothing.
- ``flip``: mirrored with probability 1/2.
- ``crop``: padded by S / 8 of black (4 pixels at 32, as for CIFAR), cropped at random, then ``flip``.
- ``standard``: a part of 35 to 100 % of the area with proportions of 3:4 to 4:3, resized (as Inception: Szegedy et al.
  2015, arXiv:1409.4842), then ``flip``, then brightness, contrast and saturation changed by up to 20 %.
- ``strong``: ``crop``, then one operation of random strength an image (TrivialAugment: Müller & Hutter 2021,
  arXiv:2103.10158).

What is random is drawn from torch's global generator of the CPU, so that a seed gives the same on every device.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812  as everyone calls it
from torch import Tensor

from finetune.settings import Augment

_CROP_SCALE, _CROP_RATIO = (0.35, 1.0), (3 / 4, 4 / 3)
_JITTER = 0.2
#: Shares of red, green and blue in what is seen as grey (ITU-R BT.601), as torchvision has them.
_GREY = (0.2989, 0.587, 0.114)


def augmented(images: Tensor, augment: Augment) -> Tensor:
    """Change a batch as a preset says.

    Args:
        images: (n, 1 or 3, S, S) uint8.
        augment: the preset.

    Returns:
        (n, 1 or 3, S, S) uint8 on the same device.
    """
    if augment == "none":
        return images
    if augment == "flip":
        return _flipped(images)
    if augment == "crop":
        return _flipped(_shifted(images))
    if augment == "standard":
        return _jittered(_flipped(_resized_crops(images)))
    return _trivially(_flipped(_shifted(images)))


def _uniform(images: Tensor, low: float, high: float) -> Tensor:
    """(n,) float32."""
    return torch.empty(len(images)).uniform_(low, high).to(images.device)


def _flipped(images: Tensor) -> Tensor:
    mirrored = _uniform(images, 0, 1) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def _shifted(images: Tensor) -> Tensor:
    """Padded, and cropped where chance has it."""
    n, _, side, _ = images.shape
    margin = max(1, side // 8)
    padded = F.pad(images, (margin,) * 4)
    top, left = torch.randint(2 * margin + 1, (2, n)).to(images.device)
    along = torch.arange(side, device=images.device)
    rows, columns = (top[:, None] + along)[:, :, None], (left[:, None] + along)[:, None, :]
    of_image = torch.arange(n, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[of_image, rows, columns].permute(0, 3, 1, 2)


def _resized_crops(images: Tensor) -> Tensor:
    """A random part of each image, resized to all of it: always enlarged, so that nothing need be antialiased."""
    area = _uniform(images, *_CROP_SCALE)
    ratio = _uniform(images, *(math.log(end) for end in _CROP_RATIO)).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    x, y = (_uniform(images, -1, 1) * (1 - size) for size in (width, height))
    zero = torch.zeros_like(x)
    maps = torch.stack([torch.stack([width, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    parts = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return parts.round_().clamp_(0, 255).to(torch.uint8)


def _jittered(images: Tensor) -> Tensor:
    """Brightness, contrast and saturation, in this order, each by a factor of the image's own."""
    brightness, contrast, saturation = (
        _uniform(images, 1 - _JITTER, 1 + _JITTER)[:, None, None, None] for _ in range(3)
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


def _trivially(images: Tensor) -> Tensor:
    from torchvision.transforms import v2

    change = v2.TrivialAugmentWide()
    return torch.stack([change(image) for image in images.contiguous()])
