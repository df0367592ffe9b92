"""A preprocessing in; its resize and crop as a module of tensor operations, which a graph can hold, out.

`Preprocessing.fit` does the same for images as they come; here height and width are unknown until the graph runs.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from featcache.common.errors import UserError
from featcache.sources.preprocessing import Preprocessing

#: An int, or where a graph is made a torch.SymInt, whose arithmetic has no types.
Length: TypeAlias = Any


#: Of the long side, no more than this many times the short one is resized: 2 x 60,000 pixels would become 256 x
#: 7,680,000 before the crop. What such an image shows may be a pixel of the result away from what `Preprocessing.fit`
#: shows.
_STRIP = 64


class Fitting(nn.Module):
    """Resize and crop or pad as `Preprocessing.fit` does, on 8-bit values with antialiasing as Pillow does.

    Raises:
        UserError: the preprocessing resizes without antialiasing.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        if not preprocessing.antialias:
            raise UserError("--with-preprocessing: this run resized without antialiasing; export it without the flag")
        self.size, self.resize_size = preprocessing.image_size, preprocessing.resize_size
        self.resize = preprocessing.resize
        self.margin = preprocessing.margin
        self.bicubic = preprocessing.interpolation == "bicubic"

    def forward(self, images: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 to (N, 3, S, S) uint8."""
        if self.resize == "crop":
            images = self._without_ends(images)
        images = images.permute(0, 3, 1, 2)
        height: Length = images.shape[2]
        width: Length = images.shape[3]
        if self.resize == "squash":
            return self._resized(images, self.size, self.size)
        if self.resize == "crop":
            short = torch.sym_min(height, width)
            height, width = (self.resize_size * side // short for side in (height, width))  # torchvision's rounding
        elif self.resize == "pad":
            long = torch.sym_max(height, width)
            height, width = (torch.sym_max(1, _rounded(self.resize_size * side, long)) for side in (height, width))
        else:
            height = width = self.resize_size
        images = self._resized(images, height, width)
        return self._fitted(self._fitted(images, 2, height), 3, width)

    def _without_ends(self, images: Tensor) -> Tensor:
        """The middle of strips, (N, H, W, 3): as far from both ends, to the pixel."""
        height: Length = images.shape[1]
        width: Length = images.shape[2]
        most = _STRIP * torch.sym_min(height, width)
        for axis, side in ((1, height), (2, width)):
            length = torch.sym_min(side, most + (side - most) % 2)
            kept = torch.arange(length, device=images.device) + (side - length) // 2
            images = images.index_select(axis, kept)
        return images

    def _resized(self, images: Tensor, height: Length, width: Length) -> Tensor:
        aten = torch.ops.aten
        resize = aten._upsample_bicubic2d_aa if self.bicubic else aten._upsample_bilinear2d_aa
        return resize.default(images, [height, width], False)

    def _fitted(self, images: Tensor, axis: int, length: Length) -> Tensor:
        """The middle ``size`` of an axis, or all of it and a margin.

        Picked by index, since a slice would ask for proof that it lies inside.
        """
        added: Length = 0
        if self.resize == "pad" or self.resize_size < self.size:
            added = torch.sym_max(0, self.size - length)
        cut = length + added - self.size
        half = cut // 2
        first = half + (cut % 2) * (half % 2) - added // 2  # round(cut / 2) as Python does: halves to even
        places = torch.arange(self.size, device=images.device) + first
        if isinstance(added, int) and not added:
            return images.index_select(axis, places)
        inside = (places >= 0) & (places < length)
        picked = images.index_select(axis, places.clamp(0, length - 1))
        margin = torch.tensor(self.margin, dtype=torch.uint8, device=images.device).view(1, 3, 1, 1)
        return torch.where(inside.view([-1 if each == axis else 1 for each in range(4)]), picked, margin)


def _rounded(numerator: Length, denominator: Length) -> Length:
    """The nearest whole number to a fraction, halves to even."""
    doubled = 2 * numerator + denominator
    nearest = doubled // (2 * denominator)
    is_half = 1 - torch.sym_min(1, doubled % (2 * denominator))
    return nearest - is_half * (nearest % 2)
