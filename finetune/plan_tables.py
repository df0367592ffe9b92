"""A plan and its model in; titles, columns and cells of the tables that show it out."""

from __future__ import annotations

from collections.abc import Sequence

from featcache.models.stages import StagedModel
from finetune.changes import StageChange
from finetune.gradient_probe import Probe
from finetune.plans import Plan
from finetune.rate_finder import FoundRates
from finetune.settings import Settings
from finetune.thawing import count_parameters
from heads.fit_head_tables import Table


def stages_table(plan: Plan, staged: StagedModel) -> Table:
    """Each stage's parameters, whether it trains, and how fast at most."""
    lines = []
    for stage in staged.stages:
        trains = stage.name in plan.trained
        rate = f"{plan.rates[stage.name]:.3g}" if trains else "–"
        lines.append((stage.name, f"{stage.n_parameters:,}", "trains" if trains else "frozen", rate))
    n_head = sum(parameter.numel() for parameter in staged.head.parameters())
    lines.append((f"{plan.head} (head)", f"{n_head:,}", "trains", f"{plan.rates[plan.head]:.3g}"))
    title = f"plan {plan.method}"
    return Table(title, ("stage", "parameters", "", "peak rate"), lines)


def told_counts(plan: Plan, staged: StagedModel) -> str:
    """How many parameters train, and how BatchNorm runs, in a sentence."""
    trainable, total = count_parameters(staged, plan.trained)
    statistics = "keeps its statistics" if plan.batch_norm == "eval" else "takes the batch's statistics where it trains"
    return f"{trainable:,} parameters train, {total - trainable:,} are frozen, {total:,} in all; BatchNorm {statistics}"


def phases_table(plan: Plan, staged: StagedModel, settings: Settings, *, n_train: int) -> Table:
    """Each phase's parameters, rates, epochs and steps."""
    steps = settings.steps_per_epoch(n_train)
    lines = []
    for number, phase in enumerate(plan.phases, start=1):
        trainable, _ = count_parameters(staged, phase.stages)
        cut = plan.cut(phase)
        lines.append(
            (
                f"{number}: {plan.name_of(phase)}",
                f"{trainable:,}",
                f"up to {plan.stages[cut - 1]}" if cut else "none",
                f"{plan.rates[plan.head] * phase.factor:.3g}",
                f"{phase.epochs}",
                f"{phase.epochs * steps:,}",
            )
        )
    columns = ("phase", "trains", "runs without gradient", "head's rate", "epochs", "steps")
    return Table(f"{settings.optimizer}, {settings.schedule}; {n_train:,} rows an epoch", columns, lines)


def changes_table(changes: Sequence[StageChange]) -> Table:
    """How far training moved each stage's weights, and how hard the loss still pulls at them."""
    lines = [
        (
            change.stage,
            f"{change.n_parameters:,}",
            "–" if change.weight_change is None else f"{change.weight_change:.3g}",
            "–" if change.gradient_norm is None else f"{change.gradient_norm:.3g}",
        )
        for change in changes
    ]
    columns = ("stage", "parameters", "weights moved by", "gradient")
    return Table("what changed, relative to the weights' norm", columns, lines)


def probe_table(probe: Probe, staged: StagedModel) -> Table:
    """How hard the loss pulls at each stage before training."""
    lines = [
        (
            stage.name,
            f"{stage.n_parameters:,}",
            f"{probe.gradient_norms[stage.name]:.3g}",
            "thaw" if stage.name in probe.suggested else "",
        )
        for stage in staged.stages
    ]
    n_head = sum(parameter.numel() for parameter in staged.head.parameters())
    lines.append((f"{staged.head_name} (head)", f"{n_head:,}", f"{probe.head:.3g}", ""))
    title = f"gradients before training, relative to the weights' norm, on {probe.n_rows:,} rows"
    return Table(title, ("stage", "parameters", "gradient", ""), lines)


def found_table(found: FoundRates, plan: Plan) -> Table:
    """The rates that a range test suggests: the head's, and the stages' that differ from it."""
    groups = [plan.head, *(name for name in reversed(plan.trained) if plan.rates[name] != plan.rates[plan.head])]
    lines = []
    for what, rate in (("steepest", found.steepest), ("valley", found.valley), ("minimum / 10", found.minimum_tenth)):
        lines.append((what, *(f"{rate * plan.rates[name] / plan.rates[plan.head]:.3g}" for name in groups)))
    return Table("peak rates by range test", ("", f"{plan.head} (head)", *groups[1:]), lines)
