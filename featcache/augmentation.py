"""Pixels of any size in, several random views of each image out, the same views whenever the same image comes again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import UsageError
from featcache.images import Pixels
from featcache.layout import digest

if TYPE_CHECKING:
    from torch import Tensor

    from featcache.preprocessing import Preprocessing


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How augmented views are drawn: torchvision's ``RandomResizedCrop``, then ``RandomHorizontalFlip``.

    A view is decided by ``seed``, the image's content and the view's number, counted from 0: not by the batch, the
    order, the process or how many views there are, so that the first views of 8 are those of 4.

    Attributes:
        views: drawn of each image.
        seed: of the random choices.
        crop_scale: the least and the greatest share of the image's area that a view shows.
        crop_ratio: the least and the greatest width of that part over its height.
        flip: the probability that a view is mirrored.

    Raises:
        UsageError: a number is out of range.
    """

    views: int
    seed: int
    crop_scale: tuple[float, float] = (0.35, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __post_init__(self) -> None:
        if self.views < 1:
            raise UsageError(f"--views {self.views}: expected a whole number of at least 1")
        if not (len(self.crop_scale) == 2 and 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1):
            given = ",".join(f"{share:g}" for share in self.crop_scale)
            raise UsageError(f"--crop-scale {given}: expected least,greatest share of the area, above 0 and at most 1")
        if not (len(self.crop_ratio) == 2 and 0 < self.crop_ratio[0] <= self.crop_ratio[1] < float("inf")):
            given = ",".join(f"{ratio:g}" for ratio in self.crop_ratio)
            raise UsageError(f"a crop ratio of {given}: expected the least,greatest width over height, above 0")
        if not 0 <= self.flip <= 1:
            raise UsageError(f"--flip {self.flip:g}: expected a probability from 0 to 1")

    def to_json(self) -> dict[str, Any]:
        return {
            "views": self.views,
            "seed": self.seed,
            "crop_scale": [float(share) for share in self.crop_scale],
            "crop_ratio": [float(ratio) for ratio in self.crop_ratio],
            "flip": float(self.flip),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Augmentation:
        return cls(**{**data, "crop_scale": tuple(data["crop_scale"]), "crop_ratio": tuple(data["crop_ratio"])})

    def draw(
        self, images: Sequence[Pixels] | Pixels, digests: NDArray[np.uint8], preprocessing: Preprocessing
    ) -> Tensor:
        """Draw the views of some images.

        torchvision draws from torch's global generator, which is left as it was: no other thread may draw meanwhile.

        Args:
            images: each (H, W) or (H, W, 3) uint8, or a stack of such.
            digests: (N, 16) uint8, their content digests.
            preprocessing: tells the side of the views and how they are resized.

        Returns:
            (N, views, 1, S, S) uint8 where all images are grey, else (N, views, 3, S, S) uint8, channels last in
            memory; S is ``image_size``.
        """
        import torch

        whole = preprocessing.override(resize="squash")  # a view shows all of its part of the image
        size = (whole.image_size, whole.image_size)
        channels = 1 if all(image.ndim == 2 for image in images) else 3
        drawn = torch.empty(
            (len(images) * self.views, channels, *size), dtype=torch.uint8, memory_format=torch.channels_last
        )
        with torch.random.fork_rng(devices=[]):
            for i, (image, content) in enumerate(zip(images, digests, strict=True)):
                for number in range(self.views):
                    top, left, height, width, mirrored = self._choose(image.shape, content.tobytes(), number)
                    shown: Any = image[None, top : top + height, left : left + width]
                    view = whole.fit(shown)
                    drawn[i * self.views + number] = view.flip(-1) if mirrored else view
        return drawn.view(len(images), self.views, channels, *size)

    def _choose(self, shape: tuple[int, ...], content: bytes, number: int) -> tuple[int, int, int, int, bool]:
        """Where a view lies, as top, left, height and width, and whether it is mirrored; reseeds torch's generator."""
        import torch
        from torchvision.transforms.v2 import RandomResizedCrop

        key = digest(f"{self.seed},{number},".encode() + content)
        torch.default_generator.manual_seed(int.from_bytes(key[:8], "little"))  # torch.manual_seed seeds GPUs as well
        sized = torch.empty(shape[:2], device="meta")
        top, left, height, width = RandomResizedCrop.get_params(sized, self.crop_scale, self.crop_ratio)
        return top, left, height, width, bool(torch.rand(1) < self.flip)
