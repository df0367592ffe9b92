"""Replace BatchNorm that trains by one whose statistics are those of all ranks, for as long as they train."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from featcache.common.errors import UserError
from featcache.common.ranks import Ranks
from featcache.models.stages import StagedModel
from finetune.plans import Plan

#: The layers that torch converts, and the spatial shape of a small input.
_SHAPES: dict[type[nn.Module], tuple[int, ...]] = {
    nn.BatchNorm1d: (),
    nn.BatchNorm2d: (2, 2),
    nn.BatchNorm3d: (2, 2, 2),
}


def check_norms(staged: StagedModel, plan: Plan, *, device: torch.device, ranks: Ranks) -> None:
    """Raises UserError if each rank would take the statistics of its own part of a batch."""
    norms = {} if ranks.is_alone else _training_norms(staged, plan)
    if norms and device.type != "cuda":
        raise UserError(
            f"BatchNorm trains on statistics of the whole batch, which {ranks.size} ranks have on GPUs only (torch's "
            f"SyncBatchNorm): take --bn eval, or one process"
        )
    for name, layer in norms.items():
        if _converter(layer) is None:
            raise UserError(
                f"{name} is a {type(layer).__module__}.{type(layer).__name__}, which {ranks.size} ranks cannot "
                "synchronise; expected torch's BatchNorm or timm's BatchNormAct2d: take --bn eval, or one process"
            )


@contextmanager
def synced_norms(staged: StagedModel, plan: Plan, *, device: torch.device, ranks: Ranks) -> Iterator[None]:
    """Replace BatchNorm that trains by `torch.nn.SyncBatchNorm`, with the activation that timm's has; not if alone.

    Weights and statistics are the same tensors throughout, by the same names.

    Raises:
        UserError: as `check_norms`.
    """
    check_norms(staged, plan, device=device, ranks=ranks)
    norms = {} if ranks.is_alone else _training_norms(staged, plan)
    synced = {name: _synced(layer) for name, layer in norms.items()}
    try:
        for name, layer in synced.items():
            staged.model.set_submodule(name, layer)
        yield
    finally:
        for name, layer in norms.items():
            layer.training = synced[name].training
            staged.model.set_submodule(name, layer)


def _training_norms(staged: StagedModel, plan: Plan) -> dict[str, _BatchNorm]:
    """The BatchNorm layers of stages that ever train, by name, if they train on the batch's statistics."""
    if plan.batch_norm == "eval":
        return {}
    within = [name for stage in staged.stages if stage.name in plan.trained for name in stage.modules]
    layers: dict[str, _BatchNorm] = {}
    for name, module in staged.model.named_modules(remove_duplicate=False):  # a layer may have two names
        inside = any(name == outer or name.startswith(f"{outer}.") for outer in within)
        if inside and isinstance(module, _BatchNorm):
            layers[name] = module
    return layers


def _converter(layer: _BatchNorm) -> Callable[[Any], nn.Module] | None:
    """What makes a synchronised layer of a BatchNorm; None of a kind whose forward pass may do more than is known."""
    if type(layer) in _SHAPES:
        return nn.SyncBatchNorm.convert_sync_batchnorm
    timm_layers = sys.modules.get("timm.layers")  # where timm made the layer, it is imported
    if timm_layers is not None and type(layer) is timm_layers.BatchNormAct2d:
        return timm_layers.convert_sync_batchnorm  # torch's would lose the activation
    return None


def _synced(layer: _BatchNorm) -> nn.Module:
    """The layer with statistics of all ranks, which in eval mode computes the same to the bit."""
    converter = _converter(layer)
    assert converter is not None
    synced = converter(layer)
    spatial = next(shape for kind, shape in _SHAPES.items() if isinstance(layer, kind))
    batch = torch.linspace(-3, 3, 2 * layer.num_features * math.prod(spatial)).view(2, layer.num_features, *spatial)
    with torch.no_grad():
        before, after = (copy.deepcopy(each).cpu().eval()(batch) for each in (layer, synced))
    assert torch.allclose(before, after, rtol=0, atol=0, equal_nan=True), f"{type(layer).__name__} converted wrongly"
    return synced
