"""Scores of an epoch in; its loss and accuracy, and which epoch is the best so far, out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  as everyone calls it
from numpy.typing import NDArray
from torch import Tensor

from finetune.sources import Labels


@dataclass(eq=False, kw_only=True)
class Best:
    """The best epoch so far, by validation: its number, from 0, its scores, and the weights that made them."""

    epoch: int
    val_accuracy: float
    val_loss: float
    scores: NDArray[np.float32]
    weights: dict[str, Tensor]


def loss_and_accuracy(scores: NDArray[np.float32], labels: Labels) -> tuple[float, float]:
    """Cross-entropy, summed up in float64, and accuracy."""
    loss = float(F.cross_entropy(torch.from_numpy(scores).double(), torch.from_numpy(labels)))
    return loss, float((scores.argmax(axis=1) == labels).mean())


def better(
    best: Best | None,
    epoch: int,
    val_loss: float,
    val_accuracy: float,
    scores: NDArray[np.float32],
    moving: Mapping[str, Tensor],
) -> Best:
    """The better one of the best and this epoch: by accuracy, of equals by loss, then the earliest.

    Args:
        best: so far.
        epoch: its number.
        val_loss, val_accuracy, scores: of it.
        moving: the weights that made them, which are copied where they are the best.
    """
    if best is not None and (val_accuracy, -val_loss) <= (best.val_accuracy, -best.val_loss):
        return best
    weights = {name: tensor.detach().cpu().clone() for name, tensor in moving.items()}
    return Best(epoch=epoch, val_accuracy=val_accuracy, val_loss=val_loss, scores=scores, weights=weights)
