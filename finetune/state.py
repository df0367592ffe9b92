"""A model, a plan and settings in; all that moves while they train, as one thing that is kept and gone on with, out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from featcache.common.ranks import Ranks
from featcache.models.stages import StagedModel
from finetune.averaging import WeightAverage
from finetune.checkpointing import Progress
from finetune.optimizers import make_optimizer
from finetune.plans import Plan
from finetune.settings import Settings
from finetune.thawing import moving_state


class TrainingState:
    """The state of a training.

    Attributes:
        moving: all tensors of the model that ever move, by name, not copied.
        optimizer: of every parameter that ever trains.
        scaler: of the loss, which does nothing but in fp16.
        average: of the parameters, or None.
        progress: how far the training has come.
    """

    def __init__(self, staged: StagedModel, plan: Plan, *, settings: Settings, device: torch.device) -> None:
        self.moving = moving_state(staged, plan.trained, plan.batch_norm)
        self.optimizer = make_optimizer(staged, plan, settings)
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        self.average = None
        if settings.ema is not None:
            parameters = dict(staged.model.named_parameters())
            trained = {name: parameters[name] for name in self.moving if name in parameters}
            self.average = WeightAverage(trained, settings.ema)
        self.progress = Progress()

    def kept(self) -> dict[str, Any]:
        """What of it goes into a checkpoint beside the progress."""
        return {
            "weights": self.moving,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            **({} if self.average is None else {"average": self.average.state()}),
        }

    def go_on(self, progress: Progress, state: Mapping[str, Any]) -> None:
        """Become what a checkpoint holds."""
        self.progress = progress
        self._become(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load(state["average"])

    def settle(self, ranks: Ranks) -> None:
        """Leave the model, on all ranks, with the weights that training comes to: the best epoch's, or the last's."""
        if self.progress.best is not None:
            self._become(self.progress.best.weights)
        elif self.average is not None:
            self._become(self.average.average)
        ranks.take_over(self.moving.values())

    @torch.no_grad()
    def _become(self, weights: Mapping[str, Tensor]) -> None:
        for name, tensor in weights.items():
            self.moving[name].copy_(tensor)
