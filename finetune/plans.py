"""Flags of fine-tuning in; a plan out: which stages train beside the head, in which phases, at which rates. Data only.

A plan knows names, never tensors: the one loop (`finetune.training`) reads it, and so does the table of ``--dry-run``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from featcache.errors import UsageError, one_of

#: What flags may call the head; in a plan it goes by the name of its module.
HEAD_ALIAS = "head"
#: How much lower the rates of each phase are than those of the one before.
PHASE_DECAY = 2.0


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


def make_plan(
    stages: Sequence[str],
    head: str,
    *,
    epochs: int | None = None,
    lr: float,
    unfreeze: str | None = None,
    freeze: str | None = None,
    progressive: bool = False,
    phase_epochs: Sequence[int] = (),
    phase_decay: float = PHASE_DECAY,
    lr_decay: float | None = None,
    lr_per_stage: Mapping[str, float] | None = None,
    from_scratch: bool = False,
    init_head: str | None = None,
    batch_norm: Literal["auto", "eval", "train"] = "auto",
    pretrained: bool = True,
) -> Plan:
    """The plan that flags ask for.

    Without ``unfreeze`` and ``freeze`` only the head trains; with a flag that says how stages train, all do.

    Args:
        stages: the backbone's, in order.
        head: the module name of its last linear layer.
        epochs: in all; 10 if neither they nor ``phase_epochs`` are given, or one a phase where there are more phases.
        lr: the head's peak learning rate.
        unfreeze: ``layer4``, ``layer3,layer4``, ``last:2`` or ``all``.
        freeze: ``early`` (the first half of the stages after the stem), ``middle`` (their middle half), or names: all
            others train, the stem too.
        progressive: the head first, then one stage more each phase, from the last (Howard & Ruder 2018,
            arXiv:1801.06146, section 3.3).
        phase_epochs: of each phase, or one number for all of them.
        phase_decay: each phase's rates are the earlier one's divided by this.
        lr_decay: the k-th stage from the end has the head's rate divided by this k times (the same paper, section 3.2).
        lr_per_stage: rates of single stages, or of the head, by name.
        from_scratch: whether the backbone begins with random weights.
        init_head: a run whose linear head the final layer begins as (LP-FT: Kumar et al. 2022, arXiv:2202.10054).
        batch_norm: ``auto`` is train for random weights, eval for pretrained ones and under ``init_head``, whose head
            was fitted on what the kept statistics give.
        pretrained: whether the backbone's weights were trained.

    Raises:
        UsageError: flags that contradict one another, an unknown stage, or a number out of range.
    """
    stages = tuple(stages)
    _check_numbers(epochs, lr, phase_epochs, phase_decay, lr_decay)
    _check_contradictions(unfreeze, freeze, progressive, phase_epochs, lr_decay, lr_per_stage, from_scratch, init_head)
    given = {HEAD_ALIAS if name == head else name: rate for name, rate in (lr_per_stage or {}).items()}
    all_by_default = from_scratch or progressive or init_head or lr_decay or set(given) - {HEAD_ALIAS}
    if freeze is not None:
        frozen = _frozen(stages, freeze)
        trained = tuple(name for name in stages if name not in frozen)
    else:
        trained = _thawed(stages, unfreeze or ("all" if all_by_default else ""))
    for name, rate in given.items():
        if name != HEAD_ALIAS and name not in stages:
            raise one_of("stage in --lr-per-stage", name, [*stages, head])
        if name != HEAD_ALIAS and name not in trained:
            raise UsageError(f"--lr-per-stage {name}={rate:g}: that stage is frozen; unfreeze it, or leave it out")
    from_end = {name: k for k, name in enumerate(reversed(stages), start=1)}
    decayed = {name: lr / (lr_decay or 1.0) ** from_end[name] for name in trained}
    rates = {name: given.get(name, rate) for name, rate in decayed.items()}
    steps = [trained]
    if progressive:
        steps = [trained[len(trained) - k :] for k in range(len(trained) + 1)]
    lengths = _phase_lengths(len(steps), epochs, phase_epochs)
    keeps_statistics = init_head is not None or (pretrained and not from_scratch)
    usual: Literal["eval", "train"] = "eval" if keeps_statistics else "train"
    discriminative = lr_decay is not None or bool(set(given) - {HEAD_ALIAS})
    return Plan(
        method=_method(stages, trained, freeze, progressive, discriminative, from_scratch, init_head),
        stages=stages,
        head=head,
        phases=tuple(
            Phase(stages=thawed, epochs=length, factor=phase_decay**-k)
            for k, (thawed, length) in enumerate(zip(steps, lengths, strict=True))
        ),
        rates={**rates, head: given.get(HEAD_ALIAS, lr)},
        batch_norm=usual if batch_norm == "auto" else batch_norm,
        from_scratch=from_scratch,
        init_head=init_head,
    )


def _check_numbers(
    epochs: int | None, lr: float, phase_epochs: Sequence[int], phase_decay: float, lr_decay: float | None
) -> None:
    if epochs is not None and epochs < 1:
        raise UsageError(f"--epochs {epochs}: expected a whole number of at least 1")
    if not 0 < lr < float("inf"):
        raise UsageError(f"--lr {lr:g}: expected a number above 0")
    if any(count < 1 for count in phase_epochs):
        raise UsageError(f"--phase-epochs {','.join(map(str, phase_epochs))}: expected whole numbers of at least 1")
    for flag, decay in (("--phase-decay", phase_decay), ("--lr-decay", lr_decay)):
        if decay is not None and not 1 <= decay < float("inf"):
            raise UsageError(f"{flag} {decay:g}: expected a number of at least 1")


def _check_contradictions(
    unfreeze: str | None,
    freeze: str | None,
    progressive: bool,
    phase_epochs: Sequence[int],
    lr_decay: float | None,
    lr_per_stage: Mapping[str, float] | None,
    from_scratch: bool,
    init_head: str | None,
) -> None:
    """Refuse what cannot be meant together."""
    if unfreeze is not None and freeze is not None:
        raise UsageError("--unfreeze and --freeze exclude one another: one names what trains, the other what does not")
    if progressive and freeze is not None:
        raise UsageError("--progressive and --freeze exclude one another: --unfreeze tells how far it thaws")
    if phase_epochs and not progressive:
        raise UsageError("--phase-epochs is for --progressive: give --epochs, or add --progressive")
    if lr_decay is not None and lr_per_stage:
        raise UsageError("--lr-decay and --lr-per-stage exclude one another: give one of them")
    if from_scratch and init_head is not None:
        raise UsageError("--from-scratch and --init-head exclude one another: a head fits the weights it was fitted on")
    if from_scratch and (freeze is not None or unfreeze not in (None, "all") or progressive):
        other = "--progressive" if progressive else "--freeze" if freeze is not None else f"--unfreeze {unfreeze}"
        raise UsageError(f"--from-scratch and {other} exclude one another: random weights are not worth freezing")


def _thawed(stages: tuple[str, ...], asked: str) -> tuple[str, ...]:
    """The stages that ``--unfreeze`` names, in the model's order."""
    if asked == "all":
        return stages
    kind, colon, number = asked.partition(":")
    if kind == "last" and colon:
        if not number.isdecimal() or not 1 <= int(number) <= len(stages):
            raise UsageError(f"--unfreeze {asked}: expected last:1 to last:{len(stages)}")
        return stages[-int(number) :]
    return _named(stages, asked, "--unfreeze", ["all", f"last:1 to last:{len(stages)}"])


def _frozen(stages: tuple[str, ...], asked: str) -> tuple[str, ...]:
    body = stages[1:]
    if asked in ("early", "middle"):
        if len(body) < 2:
            raise UsageError(f"--freeze {asked}: this model has {len(stages)} stage(s), too few to have such a part")
        first = 0 if asked == "early" else len(body) // 4
        return body[first : first + len(body) // 2]
    named = _named(stages, asked, "--freeze", ["early", "middle"])
    if not named:
        raise UsageError("--freeze names no stage: leave it out, with --unfreeze all")
    return named


def _named(stages: tuple[str, ...], asked: str, flag: str, others: list[str]) -> tuple[str, ...]:
    names = [name.strip() for name in asked.split(",") if name.strip()]
    for name in names:
        if name not in stages:
            raise one_of(f"stage in {flag}", name, [*stages, *others])
    return tuple(name for name in stages if name in names)


def _phase_lengths(n_phases: int, epochs: int | None, phase_epochs: Sequence[int]) -> list[int]:
    """Epochs of each phase."""
    if len(phase_epochs) not in (0, 1, n_phases):
        given = ",".join(map(str, phase_epochs))
        raise UsageError(f"--phase-epochs {given}: expected one number, or {n_phases}, one a phase")
    if phase_epochs:
        lengths = list(phase_epochs) * (n_phases if len(phase_epochs) == 1 else 1)
        if epochs not in (None, sum(lengths)):
            raise UsageError(f"--epochs {epochs}: --phase-epochs come to {sum(lengths)}; give one of them")
        return lengths
    total = max(10, n_phases) if epochs is None else epochs
    if total < n_phases:
        raise UsageError(f"--epochs {total}: there are {n_phases} phases, each takes one at least")
    return [total // n_phases + (k >= n_phases - total % n_phases) for k in range(n_phases)]  # later ones the longer


def _method(
    stages: tuple[str, ...],
    trained: tuple[str, ...],
    freeze: str | None,
    progressive: bool,
    discriminative: bool,
    from_scratch: bool,
    init_head: str | None,
) -> str:
    if from_scratch:
        return "scratch"
    if init_head is not None:
        return "lp-ft"
    if progressive:
        return "progressive"
    if discriminative and trained:
        return "discriminative"
    if freeze is not None:
        return f"freeze:{freeze}"
    if not trained:
        return "head"
    return "full" if trained == stages else f"partial:{','.join(trained)}"
