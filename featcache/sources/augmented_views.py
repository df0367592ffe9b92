"""Sample several random views of each image, the same ones whenever the same image comes again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featcache.common.errors import UsageError
from featcache.common.hashing import digest
from featcache.sources.decoding import Pixels

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from featcache.sources.preprocessing import Preprocessing


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
        """Draw the views of some images; no random generator but its own is touched, so that threads may draw at once.

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
        channels = 1 if all(image.ndim == 2 for image in images) else 3
        drawn = np.empty((len(images), self.views, whole.image_size, whole.image_size, channels), np.uint8)
        generator = torch.Generator()
        for i, (image, content) in enumerate(zip(images, digests, strict=True)):
            for number in range(self.views):
                key = digest(f"{self.seed},{number},".encode() + content.tobytes())
                generator.manual_seed(int.from_bytes(key[:8], "little"))
                (top, left, height, width), mirrored = self._choose(image.shape[0], image.shape[1], generator)
                view = whole.fit(image[None, top : top + height, left : left + width])[0].permute(1, 2, 0).numpy()
                if mirrored:  # channel by channel: NumPy would go from pixel to pixel, at a quarter of the pace
                    for channel in range(channels):
                        drawn[i, number, ..., channel] = view[:, ::-1, min(channel, view.shape[2] - 1)]
                else:
                    drawn[i, number] = view
        return torch.from_numpy(drawn).permute(0, 1, 4, 2, 3)

    def _choose(self, height: int, width: int, generator: Generator) -> tuple[tuple[int, int, int, int], bool]:
        """Where a view lies, as top, left, height and width, and whether it is mirrored."""
        import torch

        part = self._choose_part(height, width, generator)
        return part, bool(torch.rand(1, generator=generator) < self.flip)

    def _choose_part(self, height: int, width: int, generator: Generator) -> tuple[int, int, int, int]:
        """The numbers of torchvision's ``RandomResizedCrop.get_params``, which draws from the global generator."""
        import torch

        least, greatest = torch.log(torch.tensor(self.crop_ratio)).tolist()
        for _ in range(10):
            area = height * width * torch.empty(1).uniform_(*self.crop_scale, generator=generator).item()
            ratio = torch.exp(torch.empty(1).uniform_(least, greatest, generator=generator)).item()
            wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < high <= height:
                top = torch.randint(height - high + 1, (1,), generator=generator).item()
                left = torch.randint(width - wide + 1, (1,), generator=generator).item()
                return int(top), int(left), high, wide
        # None fits: the middle, with its proportions bounded.
        wide = min(width, round(height * max(self.crop_ratio)))
        high = min(height, round(width / min(self.crop_ratio)))
        return (height - high) // 2, (width - wide) // 2, high, wide
