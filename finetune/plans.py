"""What fine-tuning trains: which stages beside the head, in which phases, at which rates. Data only.

A plan knows names, never tensors: the one loop (`finetune.training`) reads it, and so does the table of ``--dry-run``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

#: What flags may call the head; in a plan it goes by the name of its module.
HEAD_ALIAS = "head"


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Some epochs in a row in which the same stages train.

    Attributes:
        stages: that train, in the model's order; the head always does.
        epochs: how many, at least one.
        factor: multiplies the rate of every group.
    """

    stages: tuple[str, ...]
    epochs: int
    factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained when, and how fast.

    Attributes:
        method: as ``run.json`` tells it: head, partial:layer4, full, freeze:early, progressive, discriminative, lp-ft
            or scratch.
        stages: of the backbone, in order, trained or not.
        head: the module name of the last linear layer.
        phases: one after the other.
        rates: the peak learning rate of each group that trains in some phase, by stage, or `head` for the head.
        batch_norm: how thawed BatchNorm layers run: ``eval`` keeps their statistics, ``train`` takes the batch's.
            Frozen ones always keep theirs.
        from_scratch: whether the backbone's weights are drawn anew.
        init_head: the run whose linear head the final layer begins as, or None for a random one.
    """

    method: str
    stages: tuple[str, ...]
    head: str
    phases: tuple[Phase, ...]
    rates: Mapping[str, float]
    batch_norm: Literal["eval", "train"]
    from_scratch: bool = False
    init_head: str | None = None

    def __post_init__(self) -> None:
        assert self.phases
        assert all(phase.epochs > 0 for phase in self.phases)
        assert set(self.trained) | {self.head} == set(self.rates), (self.trained, self.rates)

    @property
    def trained(self) -> tuple[str, ...]:
        """The stages that train in some phase, in order."""
        ever = {name for phase in self.phases for name in phase.stages}
        return tuple(name for name in self.stages if name in ever)

    @property
    def epochs(self) -> int:
        """Of all phases."""
        return sum(phase.epochs for phase in self.phases)

    def phase_at(self, epoch: int) -> tuple[int, int]:
        """The number of the phase that an epoch, counted from 0, belongs to, and the first epoch of that phase."""
        first = 0
        for number, phase in enumerate(self.phases):
            if epoch < first + phase.epochs:
                return number, first
            first += phase.epochs
        raise AssertionError(epoch)

    def cut(self, phase: Phase) -> int:
        """How many leading stages stay frozen in a phase: they need no gradient, and their output could be cached."""
        return next((i for i, name in enumerate(self.stages) if name in phase.stages), len(self.stages))

    def name_of(self, phase: Phase) -> str:
        """What trains in a phase: head, layer4+head, layer3 to head, all."""
        if phase.stages == self.stages:
            return "all"
        if len(phase.stages) > 1 and phase.stages == self.stages[-len(phase.stages) :]:
            return f"{phase.stages[0]} to {HEAD_ALIAS}"
        return "+".join((*phase.stages, HEAD_ALIAS))

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        return {**asdict(self), "rates": dict(self.rates)}
