"""Images of a second set and what the start made of them in; a term that keeps the model's answers to them out.

Learning without forgetting (Li and Hoiem 2016, arXiv:1606.09282): the answers are those of the final layer that the
weights came with, which stays as it is, and the loss is distillation's. There the images were those of the new task;
here they are of a set of one's own choice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from featcache.cache.cache_file import Cache
from featcache.common.ranks import ALONE, Ranks
from featcache.models.stages import StagedModel
from featcache.sources.image_sets import ImageDataset
from finetune.cached_rows import tuning_rows
from finetune.forward import autocast
from finetune.settings import Settings
from finetune.share import Share
from finetune.sources import Labels, Source
from finetune.thawing import Thawed
from heads.rows import load_rows

#: What answers are divided by before they are compared, as in the paper (section 3): unlikely classes then count too.
TEMPERATURE = 2.0


@dataclass(frozen=True, eq=False, kw_only=True)
class Rehearsed:
    """What is rehearsed: training images, and their features by the start.

    Attributes:
        cache: of these features.
        images: N of them.
        features: (N, D) float32, row by row theirs.
    """

    cache: Cache
    images: Source
    features: Tensor

    def to_json(self) -> dict[str, Any]:
        """For ``run.json``."""
        return {
            "dataset": self.cache.dataset,
            "images": len(self.features),
            "of": "train, not augmented",
            "cache": self.cache.path.name,
            "temperature": TEMPERATURE,
        }


def rehearsed_rows(cache: Cache, dataset: ImageDataset, *, device: torch.device, workers: int = 0) -> Rehearsed:
    """All rows of a set but those of its test split, which can still tell what was forgotten.

    Args:
        cache: of the set's features by the start.
        dataset: the set that it was made of.
        device: where batches go.
        workers: threads that read ahead.

    Raises:
        UserError: the set lacks rows of the cache, or has too few.
    """
    rows = load_rows(cache, views="plain")
    sources = tuning_rows(cache, rows, device=device, workers=workers, dataset=dataset)
    features = torch.from_numpy(np.array(rows.dev.features.load()))
    return Rehearsed(cache=cache, images=sources.train.joined(sources.val), features=features.to(device))


class Rehearsal:
    """weight * T^2 * KL(start's answers || the model's) at the temperature T, on a batch of the rehearsed images.

    In each step as many images as a forward pass of the training has, drawn anew with the seed, the epoch and the
    step's number. T^2 keeps gradients at the size that they have at T = 1 (Hinton, Vinyals and Dean 2015,
    arXiv:1503.02531).

    Args:
        staged: the model.
        head: the final layer that its weights came with; it is not trained.
        rehearsed: on what; on the same device as the model.
        weight: above 0; 1 counts an image like one of those to be learned.
        settings: precision, seed, and images a pass.
        device: where the model is.
        ranks: that train together, and share the images of a step.
    """

    def __init__(
        self,
        staged: StagedModel,
        head: nn.Linear,
        rehearsed: Rehearsed,
        *,
        weight: float,
        settings: Settings,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        self.trunk = staged.trunk()
        self.head = head.to(device)
        self.rehearsed = rehearsed
        self.weight = weight
        self.settings = settings
        self.device = device
        self.share = Share(ranks=ranks)
        self.n_images = min(settings.batch_size, len(rehearsed.features))
        self.share.check(self.n_images, 1)
        self.stream: Iterator[tuple[Labels, Tensor]] = iter(())
        self.next: tuple[int, int] | None = None

    def __call__(self, thawed: Thawed, *, epoch: int, step: int, n_steps: int) -> Tensor:
        if not thawed.stages:
            return torch.zeros(())
        if self.next != (epoch, step):
            self.stream = self._read(epoch, range(step, n_steps))
        self.next = (epoch, step + 1)
        numbers, images = next(self.stream)
        with autocast(self.device, self.settings.precision):
            features = self.trunk(images)
        with torch.no_grad():
            expected = self._answers(self.rehearsed.features[torch.from_numpy(numbers).to(self.device)])
        distance = F.kl_div(self._answers(features.float()), expected, reduction="sum", log_target=True)
        return self.weight * TEMPERATURE**2 * distance / self.n_images

    def _read(self, epoch: int, steps: range) -> Iterator[tuple[Labels, Tensor]]:
        """The images of the epoch's steps, read ahead, and their numbers; this rank's share of each."""
        n_rows = len(self.rehearsed.features)
        seeds = ((self.settings.seed, epoch, step, n_rows) for step in steps)
        drawn = [np.random.default_rng(seed).choice(n_rows, self.n_images, replace=False) for seed in seeds]
        mine = [numbers[self.share.places(self.n_images)] for numbers in drawn]
        return zip(mine, self.rehearsed.images.batches(mine, augment=False), strict=True)

    def _answers(self, features: Tensor) -> Tensor:
        """Log-probabilities (n, n_classes) of the classes that the weights came with, softened."""
        return F.log_softmax(F.linear(features, self.head.weight, self.head.bias) / TEMPERATURE, dim=1)
