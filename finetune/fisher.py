"""A pretrained model and images in; how much each weight decides what it says of them out: the Fisher information."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from featcache.common.machine import full_fp32
from featcache.common.ranks import ALONE, Ranks
from featcache.models.stages import StagedModel
from finetune.sources import Source

#: Images that the information is estimated on, at most: each takes a pass back and forth of its own.
FISHER_IMAGES = 256


@dataclass(frozen=True, eq=False, kw_only=True)
class Fisher:
    """The diagonal of the Fisher information of some weights.

    Attributes:
        diagonal: by the weight's name, in its shape, float32: the mean over images of the squared gradient.
        n_images: that it was estimated on.
        n_classes: of the final layer that the predictions went through.
    """

    diagonal: Mapping[str, Tensor]
    n_images: int
    n_classes: int

    def to_json(self) -> dict[str, Any]:
        """On what it was estimated, for ``run.json``."""
        return {
            "images": self.n_images,
            "of": "train, not augmented",
            "head": f"the final layer that the weights came with, {self.n_classes} classes",
            "labels": "one an image, drawn from the predictions of the model at the start",
        }


def fisher_information(
    staged: StagedModel,
    head: nn.Linear,
    rows: Source,
    *,
    names: Collection[str],
    seed: int,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> Fisher:
    """Estimate the diagonal of the Fisher information at the model's weights as they are.

    The mean of (d log p(y | x) / d weight)^2 over images x, with one label y an image drawn from p(y | x): the labels
    must be the model's own predictions, not the true ones, or it is no Fisher information (Kunstner, Balles and Hennig
    2019, arXiv:1905.12558).

    EWC asks for that of the task that must not be forgotten. Its images are those of the pretraining, which are not at
    hand; what is at hand is the model of it. So p is that model's, through the final layer that its weights came with
    (a new one, drawn at random, knows nothing that could be forgotten), and x are the rows to train on: what is
    protected is what the pretrained model says of these. At most `FISHER_IMAGES` of them, drawn with the seed, each in
    a pass of its own in eval mode and fp32, since squares of single images' gradients are wanted.

    Args:
        staged: the model as it starts; its weights, and which of them require gradients, stay as they are.
        head: its own final layer, from ``staged.feature_dim`` to the classes of the pretraining.
        rows: images to estimate on; their labels are not looked at.
        names: of the weights.
        seed: of the choice of images and labels.
        device: where to compute; the model is moved there.
        ranks: that share the images.
    """
    images, n_rows = rows.serving(0), len(rows.labels)
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(n_rows)[:FISHER_IMAGES])
    draws = rng.random(len(chosen))
    trunk = staged.trunk().to(device).eval()
    head = head.to(device)
    weights = {name: staged.model.get_parameter(name) for name in names}
    required = {name: weight.requires_grad for name, weight in weights.items()}
    squares = {name: torch.zeros_like(weight, requires_grad=False) for name, weight in weights.items()}
    flags = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
    try:
        for weight in weights.values():
            weight.requires_grad_()
        with flags, full_fp32(), torch.enable_grad():
            mine = ranks.part(len(chosen))
            stream = images.batches(list(chosen[mine, None]), augment=False)
            for image, draw in zip(stream, draws[mine].tolist(), strict=True):
                log_p = F.log_softmax(F.linear(trunk(image), head.weight, head.bias), dim=1)
                label = drawn_label(log_p.detach(), draw)
                found = torch.autograd.grad(log_p[0, label], list(weights.values()), allow_unused=True)
                for square, gradient in zip(squares.values(), found, strict=True):
                    if gradient is not None:
                        square.addcmul_(gradient, gradient, value=1 / len(chosen))
    finally:
        for name, weight in weights.items():
            weight.requires_grad_(required[name])
    ranks.add_up(squares.values())
    return Fisher(diagonal=squares, n_images=len(chosen), n_classes=head.out_features)


def drawn_label(log_p: Tensor, draw: float) -> int:
    """The class that a number from [0, 1) draws from log-probabilities (1, n_classes)."""
    cumulated = log_p[0].double().exp().cumsum(0).cpu()
    found = int(torch.searchsorted(cumulated, draw * cumulated[-1], right=True))
    return min(found, len(cumulated) - 1)  # where a draw next to 1 is rounded up
