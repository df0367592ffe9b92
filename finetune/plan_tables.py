"""A plan and its model in; titles, columns and cells of the tables that show it out."""

from __future__ import annotations

from featcache.stages import StagedModel
from finetune.plans import Plan
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
