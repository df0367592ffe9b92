"""A model, its plan and a phase in; what may train and what may not, set, and checked afterwards to have kept to it.

Frozen means: no gradient, eval mode, and the same bytes before and after. Stages below the lowest thawed one are run
without gradient at all; a frozen stage above it passes the gradient on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from featcache.common.errors import UserError
from featcache.models.stages import StagedModel
from featcache.models.weights import sha256
from finetune.plans import Phase, Plan


class FrozenError(UserError):
    """Something that a plan freezes has moved, or something that it trains does not train."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Thawed:
    """A model as a phase of a plan trains it.

    Attributes:
        staged: the model.
        stages: that train.
        batch_norm: how their BatchNorm layers run.
        parameters: that train, by name, the head's last.
        cut: how many leading stages need no gradient.
    """

    staged: StagedModel
    stages: tuple[str, ...]
    batch_norm: Literal["eval", "train"]
    parameters: dict[str, nn.Parameter]
    cut: int

    def set_modes(self) -> None:
        """Put what trains in train mode, and all else in eval mode, where statistics and dropout stand still."""
        model = self.staged.model.eval()
        model.training = bool(self.stages)  # of the outermost module alone, whose children have their own
        for module in _modules(self.staged, self.stages):
            module.train()
        self.staged.head.train()
        if self.batch_norm == "eval":
            for layer in _norms(self.staged, self.stages):
                layer.training = False  # the dropout that timm puts within BatchNorm is not its statistics

    def frozen_sha256(self) -> str:
        """Of all parameters and buffers that must not move in this phase."""
        return frozen_sha256(self.staged, self.stages, self.batch_norm)

    def check_optimized(self, optimizer: Optimizer) -> None:
        """Raises FrozenError where nothing trains, or something that trains is in no group of the optimizer."""
        if not self.parameters:
            raise FrozenError("nothing is left to train: the plan freezes everything")
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        outside = [name for name, parameter in self.parameters.items() if id(parameter) not in held]
        if outside:
            raise FrozenError(f"{_some(outside)} would train, but the optimizer does not hold them")
        trainable = {name for name, parameter in self.staged.model.named_parameters() if parameter.requires_grad}
        if trainable != set(self.parameters):
            raise FrozenError(f"{_some(sorted(trainable ^ set(self.parameters)))} differ from what the plan trains")

    def gradients(self) -> list[Tensor]:
        """Those that there are at the moment, the same parameters' on every rank."""
        return [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]

    def without_gradient(self) -> set[str]:
        """The names of those that train and have no gradient at the moment."""
        return {name for name, parameter in self.parameters.items() if parameter.grad is None}


def thaw(staged: StagedModel, plan: Plan, phase: Phase) -> Thawed:
    """Let the stages of a phase and the head require gradients, and nothing else."""
    names = [name for stage in staged.stages if stage.name in phase.stages for name in stage.parameters]
    names += [f"{staged.head_name}.{name}" for name, _ in staged.head.named_parameters()]
    staged.model.requires_grad_(False)
    parameters = {name: staged.model.get_parameter(name) for name in names}
    for parameter in parameters.values():
        parameter.requires_grad_()
    for parameter in staged.model.parameters():
        if not parameter.requires_grad:
            parameter.grad = None
    return Thawed(
        staged=staged,
        stages=phase.stages,
        batch_norm=plan.batch_norm,
        parameters=parameters,
        cut=plan.cut(phase),
    )


def frozen_sha256(staged: StagedModel, trained: tuple[str, ...], batch_norm: Literal["eval", "train"]) -> str:
    """The digest of all that stands still while some stages and the head train."""
    moving = moving_state(staged, trained, batch_norm)
    return sha256({name: tensor for name, tensor in staged.model.state_dict().items() if name not in moving})


def moving_state(
    staged: StagedModel, trained: tuple[str, ...], batch_norm: Literal["eval", "train"]
) -> dict[str, Tensor]:
    """What moves while these stages and the head train, as ``state_dict`` names it, not copied.

    BatchNorm's statistics are among it where they are the batch's.
    """
    names = {name for stage in staged.stages if stage.name in trained for name in stage.parameters}
    names |= {f"{staged.head_name}.{name}" for name, _ in staged.head.named_parameters()}
    if batch_norm == "train":
        norms = {id(layer) for layer in _norms(staged, trained)}
        for name, module in staged.model.named_modules():
            if id(module) in norms:
                names |= {f"{name}.{buffer}" for buffer, _ in module.named_buffers()}
    return {name: tensor for name, tensor in staged.model.state_dict().items() if name in names}


def check_frozen(before: str, after: str, what: str) -> None:
    """Raises FrozenError where two digests of what is frozen differ."""
    if before != after:
        raise FrozenError(f"{what} moved: SHA-256 {before[:12]} before, {after[:12]} after; this is a fault, report it")


def check_gradients(missing: set[str]) -> None:
    """Raises FrozenError where something that trains has not had a gradient in a whole epoch."""
    if missing:
        raise FrozenError(f"{_some(sorted(missing))} train by the plan, and never had a gradient")


def count_parameters(staged: StagedModel, trained: tuple[str, ...]) -> tuple[int, int]:
    """How many numbers train, the head's included, and how many there are; as the model's head is now."""
    head = sum(parameter.numel() for parameter in staged.head.parameters())
    thawed = sum(stage.n_parameters for stage in staged.stages if stage.name in trained)
    return thawed + head, sum(stage.n_parameters for stage in staged.stages) + head


def _modules(staged: StagedModel, stages: tuple[str, ...]) -> list[nn.Module]:
    names = [name for stage in staged.stages if stage.name in stages for name in stage.modules]
    return [staged.model.get_submodule(name) for name in names]


def _norms(staged: StagedModel, stages: tuple[str, ...]) -> list[_BatchNorm]:
    layers = (layer for module in _modules(staged, stages) for layer in module.modules())
    return [layer for layer in layers if isinstance(layer, _BatchNorm)]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def group_of(staged: StagedModel) -> Mapping[str, str]:
    """The stage of each parameter, or the head's name."""
    of_stages = {name: stage.name for stage in staged.stages for name in stage.parameters}
    return of_stages | {f"{staged.head_name}.{name}": staged.head_name for name, _ in staged.head.named_parameters()}
