"""A model whose BatchNorm takes statistics of the batch in; the same with statistics over all ranks, for the while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from featcache.errors import UserError
from featcache.ranks import Ranks
from featcache.stages import StagedModel
from finetune.plans import Plan


def check_norms(staged: StagedModel, plan: Plan, *, device: torch.device, ranks: Ranks) -> None:
    """Raises UserError where ranks would take statistics each of its own share of a batch."""
    if not ranks.is_alone and device.type != "cuda" and _training_norms(staged, plan):
        raise UserError(
            f"BatchNorm trains on statistics of the whole batch, which {ranks.size} ranks have on GPUs only (torch's "
            f"SyncBatchNorm): take --bn eval, or one process"
        )


@contextmanager
def synced_norms(staged: StagedModel, plan: Plan, *, device: torch.device, ranks: Ranks) -> Iterator[None]:
    """Put `torch.nn.SyncBatchNorm` in the place of BatchNorm that trains; one process is left as it is.

    Weights and statistics are the same tensors throughout.

    Raises:
        UserError: ranks would take statistics each of its own share of a batch.
    """
    check_norms(staged, plan, device=device, ranks=ranks)
    own = {} if ranks.is_alone else _training_norms(staged, plan)
    for name, layer in own.items():
        synced = nn.SyncBatchNorm.convert_sync_batchnorm(layer)  # type: ignore[no-untyped-call]
        staged.model.set_submodule(name, synced)
    try:
        yield
    finally:
        for name, layer in own.items():
            staged.model.set_submodule(name, layer)


def _training_norms(staged: StagedModel, plan: Plan) -> dict[str, nn.Module]:
    """The BatchNorm layers of stages that ever train, by name, where they train on the batch's statistics."""
    if plan.batch_norm == "eval":
        return {}
    within = [name for stage in staged.stages if stage.name in plan.trained for name in stage.modules]
    layers: dict[str, nn.Module] = {}
    for name, module in staged.model.named_modules():
        inside = any(name == outer or name.startswith(f"{outer}.") for outer in within)
        if inside and isinstance(module, _BatchNorm):
            layers[name] = module
    return layers
