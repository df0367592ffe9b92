"""A plan in; one optimizer that holds, from the start, every parameter that will ever train, each with its own rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from featcache.models.stages import StagedModel
from finetune.plans import Plan
from finetune.settings import Settings
from finetune.thawing import group_of


def make_optimizer(staged: StagedModel, plan: Plan, settings: Settings) -> Optimizer:
    """The optimizer of a whole run.

    Parameters without a gradient are passed over, with neither momentum nor weight decay; so those that a later phase
    thaws join by getting gradients, the momentum of the others goes on, and a checkpoint holds the same groups at any
    time. Each stage has a group of matrices and one of vectors (biases, norms), which take no weight decay. Stages that
    are held to their start have none either: it would pull them elsewhere.
    """
    members: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, group in group_of(staged).items():
        if group in plan.rates:
            parameter = staged.model.get_parameter(name)
            members.setdefault((group, parameter.ndim > 1), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {
            "params": parameters,
            "name": group,
            "lr": plan.rates[group],
            "peak": plan.rates[group],
            "weight_decay": settings.decay if decayed and (group == plan.head or not settings.holds_start) else 0.0,
        }
        for (group, decayed), parameters in members.items()
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=settings.momentum)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=0.0)


def set_rates(optimizer: Optimizer, factor: float) -> None:
    """Give each group its own peak rate times a factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def rates_of(optimizer: Optimizer) -> dict[str, float]:
    """The rate that each stage, and the head, has now."""
    return {group["name"]: group["lr"] for group in optimizer.param_groups}
