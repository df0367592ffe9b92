"""What flags say of the training in, a `Plan` out, or one line on why they cannot be meant together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from featcache.common.errors import UsageError, one_of
from finetune.plans import HEAD_ALIAS, Phase, Plan

#: How much lower the rates of each phase are than those of the one before.
PHASE_DECAY = 2.0


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
