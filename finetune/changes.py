"""A model before and after training in; how far each stage's weights moved, how hard the loss pulled at them, out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from featcache.models.stages import StagedModel
from finetune.thawing import group_of

#: Steps of an epoch, evenly spaced, whose gradients are measured.
MEASURED_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class StageChange:
    """What a training did to a stage, or to the head.

    Attributes:
        stage: its name, or the module name of the head.
        n_parameters: how many numbers its parameters hold.
        weight_change: |after - before| / |before| of all its parameters together, by the Euclidean norm; exactly 0
            where nothing moved. BatchNorm's statistics are no parameters. None where |before| is 0.
        gradient_norm: |gradient| / |weights|, before clipping, as a mean over steps of the last epoch in which it
            trained; None where it never did.
    """

    stage: str
    n_parameters: int
    weight_change: float | None
    gradient_norm: float | None


class GradientNorms:
    """Gathers |gradient| / |weights| of each stage, step by step, without waiting for the device.

    Args:
        parameters: that train, by name.
        groups: the stage of each parameter, as `finetune.thawing.group_of` tells it.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], groups: Mapping[str, str]) -> None:
        self.members: dict[str, list[nn.Parameter]] = {}
        for name, parameter in parameters.items():
            self.members.setdefault(groups[name], []).append(parameter)
        self.seen: dict[str, list[Tensor]] = {group: [] for group in self.members}

    def add(self) -> None:
        """Measure the gradients that are there now."""
        for group, members in self.members.items():
            gradients = [parameter.grad for parameter in members if parameter.grad is not None]
            if gradients:
                self.seen[group].append(_norm(gradients) / _norm([parameter.detach() for parameter in members]))

    def means(self) -> dict[str, float | None]:
        """The mean of each stage, over the steps in which it is finite; None where there are none."""
        found: dict[str, float | None] = {}
        for group, norms in self.seen.items():
            finite = [norm for norm in torch.stack(norms).tolist() if norm < float("inf")] if norms else []
            found[group] = sum(finite) / len(finite) if finite else None
        return found


def stage_changes(
    staged: StagedModel, before: Mapping[str, Tensor], history: Sequence[Mapping[str, Any]]
) -> tuple[StageChange, ...]:
    """What changed since, for each stage in order, and for the head.

    Args:
        staged: the model as it is now.
        before: its state dict as it was.
        history: of the training between, as in ``run.json``.
    """
    parameters = dict(staged.model.named_parameters())
    groups: dict[str, list[str]] = {}
    for name, group in group_of(staged).items():
        groups.setdefault(group, []).append(name)
    found = []
    for group, names in groups.items():
        squares = [_squares(before[name], parameters[name].detach()) for name in names]
        size, moved = (sqrt(sum(pair[i] for pair in squares)) for i in (0, 1))
        pulled = [entry["gradients"][group] for entry in history if group in entry["gradients"]]
        found.append(
            StageChange(
                stage=group,
                n_parameters=sum(parameters[name].numel() for name in names),
                weight_change=moved / size if size else None,
                gradient_norm=pulled[-1] if pulled else None,
            )
        )
    return tuple(found)


def _squares(before: Tensor, after: Tensor) -> tuple[float, float]:
    """The squared norms of a tensor before, and of what it moved by, in float64."""
    was, now = before.to("cpu", torch.float64), after.to("cpu", torch.float64)
    return float(was.square().sum()), float((now - was).square().sum())


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(tensor, dtype=torch.float32) for tensor in tensors]).norm()
