"""A preprocessing in; its resize and crop as a module of tensor operations, which a graph can hold, out.

`Preprocessing.fit` does the same for images as they come; here height and width are unknown until the graph runs.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from featcache.errors import UserError
from featcache.preprocessing import Preprocessing

#: An int, or where a graph is made a torch.SymInt, whose arithmetic has no types.
Length: TypeAlias = Any


class Fitting(nn.Module):
    """Resize to the short side and crop the centre, or squash, on 8-bit values with antialiasing as Pillow does.

    Raises:
        UserError: the preprocessing resizes without antialiasing.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        if not preprocessing.antialias:
            raise UserError("--with-preprocessing: this run resized without antialiasing; export it without the flag")
        self.size, self.short_side = preprocessing.image_size, preprocessing.resize_size
        self.squash = preprocessing.resize == "squash"
        self.bicubic = preprocessing.interpolation == "bicubic"

    def forward(self, images: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 to (N, 3, S, S) uint8."""
        images = images.permute(0, 3, 1, 2)
        height: Length = images.shape[2]
        width: Length = images.shape[3]
        if self.squash:
            return self._resized(images, self.size, self.size)
        short = torch.sym_min(height, width)
        height, width = self.short_side * height // short, self.short_side * width // short  # torchvision's rounding
        return self._cropped(self._cropped(self._resized(images, height, width), 2, height), 3, width)

    def _resized(self, images: Tensor, height: Length, width: Length) -> Tensor:
        aten = torch.ops.aten
        resize = aten._upsample_bicubic2d_aa if self.bicubic else aten._upsample_bilinear2d_aa
        return resize.default(images, [height, width], False)

    def _cropped(self, images: Tensor, axis: int, length: Length) -> Tensor:
        """The middle ``size`` of an axis; picked by index, since a slice would ask for proof that it lies inside."""
        margin = length - self.size
        half = margin // 2
        first = half + (margin % 2) * (half % 2)  # round(margin / 2) as Python and torchvision do: halves to even
        return images.index_select(axis, torch.arange(self.size, device=images.device) + first)
