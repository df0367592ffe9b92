"""A model and a number of classes in; the same model with a final layer for them, random or a fitted head's, out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from featcache.common.errors import UserError
from featcache.models.stages import StagedModel
from heads.predictors import ABSENT, Head, LinearHead


@dataclass(frozen=True, eq=False, kw_only=True)
class FinalLayer:
    """Weights (n_classes, D) and bias (n_classes,) float32 of a last linear layer."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


def replace_head(staged: StagedModel, n_classes: int, *, seed: int) -> None:
    """Put a new last linear layer, drawn as torch draws them, in the place of the model's own."""
    old = staged.head
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new = nn.Linear(old.in_features, n_classes)
    parent, _, name = staged.head_name.rpartition(".")
    setattr(staged.model.get_submodule(parent), name, new.to(old.weight.device).eval().requires_grad_(False))


@torch.no_grad()
def set_head(staged: StagedModel, layer: FinalLayer) -> None:
    """Copy weights into the last linear layer, whose shape they have."""
    head = staged.head
    head.weight.copy_(torch.from_numpy(layer.weight))
    head.bias.copy_(torch.from_numpy(layer.bias))


def folded(head: Head) -> FinalLayer:
    """A fitted linear head as a layer on features that are not standardised: its scaler is folded into its weights.

    In float64 and rounded once at the end (`LinearHead.folded`).

    Raises:
        UserError: the head is not linear, or has no weights for some class.
    """
    if not isinstance(head, LinearHead):
        raise UserError(
            f"--init-head: a head of kind {head.KIND} is no linear layer; fit one with bin/fit-head --clf logreg "
            "(or linear, svm, ridge, lda) --no-refit"
        )
    if (head.bias <= ABSENT / 2).any():
        raise UserError("--init-head: the head was fitted without rows of some class; fit it on all of them")
    weight, bias = head.folded()
    return FinalLayer(weight=weight.astype(np.float32), bias=bias.astype(np.float32))
