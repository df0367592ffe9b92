"""The weights that a model starts from in; terms of the loss that hold it there while it trains out.

A term is what the loop adds to the loss of a step beside the loss of the batch. It is a function of the model alone and
of the step's number, so that a training that is gone on with adds the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from featcache.common.ranks import ALONE, Ranks
from featcache.models.stages import StagedModel
from finetune.plans import Plan
from finetune.thawing import Thawed


class Term(Protocol):
    """Something to be added to the loss of each step."""

    def __call__(self, thawed: Thawed, *, epoch: int, step: int, n_steps: int) -> Tensor:
        """A scalar, float32, that is 0 without a gradient where nothing that trains now decides it.

        Where ranks train together each gives a share of it, and the shares make it up.

        Args:
            thawed: the model as the phase trains it.
            epoch, step: counted from 0, the step within the epoch; what is random follows from these.
            n_steps: of the epoch.
        """


class PullToStart:
    """strength / 2 * sum of importance * (weight - its start)^2 over the weights of thawed stages.

    With no importances all weights count alike: L2-SP (Li, Grandvalet and Davoine 2018, arXiv:1802.01483, eq. 2). With
    the diagonal of the Fisher information: EWC (Kirkpatrick et al. 2017, arXiv:1612.00796, eq. 3). The final layer is
    new, and not held. The gradient of the term is strength * importance * (weight - start).

    Args:
        start: by name, the weights to be held to; copied.
        strength: above 0.
        importance: by name, in the shapes of the weights, not negative; None for 1.
        ranks: that train together; each gives the same share of it.
    """

    def __init__(
        self,
        start: Mapping[str, Tensor],
        *,
        strength: float,
        importance: Mapping[str, Tensor] | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.start = {name: tensor.detach().clone() for name, tensor in start.items()}
        self.strength = strength
        self.importance = importance
        self.n_shares = ranks.size
        assert importance is None or importance.keys() == self.start.keys()

    def __call__(self, thawed: Thawed, *, epoch: int, step: int, n_steps: int) -> Tensor:
        parts = []
        for name, parameter in thawed.parameters.items():
            if name in self.start:
                square = (parameter - self.start[name]).square()
                parts.append((square if self.importance is None else self.importance[name] * square).sum())
        if not parts:
            return torch.zeros(())
        return self.strength / 2 / self.n_shares * torch.stack(parts).sum()


def held_weights(staged: StagedModel, plan: Plan) -> dict[str, Tensor]:
    """The weights, not copied, of the stages that train in some phase: all of them, biases and norms too."""
    names = [name for stage in staged.stages if stage.name in plan.trained for name in stage.parameters]
    return {name: staged.model.get_parameter(name).detach() for name in names}
