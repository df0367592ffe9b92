"""A model at its start, a plan and settings in; what holds the model there while it trains, and how it is told, out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from featcache.common.errors import UsageError
from featcache.common.ranks import ALONE, Ranks
from featcache.models.stages import StagedModel
from finetune.fisher import fisher_information
from finetune.penalties import PullToStart, Term, held_weights
from finetune.plans import Plan
from finetune.rehearsal import Rehearsal, Rehearsed
from finetune.settings import Settings
from finetune.sources import Source


@dataclass(frozen=True, eq=False, kw_only=True)
class Held:
    """What is added to the loss of each step.

    Attributes:
        terms: for `finetune.training.train`.
        told: for ``run.json``, by flag.
    """

    terms: Sequence[Term] = ()
    told: dict[str, Any] = field(default_factory=dict)


def check_holding(settings: Settings, plan: Plan) -> None:
    """Refuse what cannot be meant together.

    Raises:
        UsageError: something is to be kept near a start that is random, or that does not move.
    """
    for flag, value in (
        ("--l2-sp", settings.l2_sp),
        ("--ewc", settings.ewc),
        ("--wise-ft", settings.wise_ft or None),
        ("--rehearse", settings.rehearse),
    ):
        if value is None:
            continue
        if plan.from_scratch:
            raise UsageError(f"--from-scratch and {flag} exclude one another: random weights are not worth keeping")
        if not plan.trained:
            raise UsageError(f"{flag}: the head alone trains, so no stage can forget; add --unfreeze, or leave it out")
    if settings.rehearse is not None and plan.batch_norm == "train":
        raise UsageError("--rehearse: BatchNorm's statistics would be those of both sets mixed; take --bn eval")


def held(
    staged: StagedModel,
    plan: Plan,
    rows: Source,
    *,
    head: nn.Linear,
    settings: Settings,
    device: torch.device,
    rehearsed: Rehearsed | None = None,
    ranks: Ranks = ALONE,
) -> Held:
    """The terms that settings ask for; the model is moved to the device, and is to have the weights of its start.

    Args:
        staged, plan: what will train.
        rows: to train on, which the Fisher information is estimated on.
        head: the final layer that the weights came with.
        settings, device: how, and where.
        rehearsed: where settings ask for rehearsal.
        ranks: that train together.
    """
    terms: list[Term] = []
    told: dict[str, Any] = {}
    staged.model.to(device)
    start = held_weights(staged, plan)
    if settings.l2_sp is not None:
        terms.append(PullToStart(start, strength=settings.l2_sp, ranks=ranks))
        told["l2_sp"] = {"strength": settings.l2_sp, "weights": sum(tensor.numel() for tensor in start.values())}
    if settings.ewc is not None:
        fisher = fisher_information(staged, head, rows, names=start, seed=settings.seed, device=device, ranks=ranks)
        terms.append(PullToStart(start, strength=settings.ewc, importance=fisher.diagonal, ranks=ranks))
        told["ewc"] = {"strength": settings.ewc, "fisher": fisher.to_json()}
    if settings.rehearse is not None:
        assert rehearsed is not None
        weight = settings.rehearse
        terms.append(Rehearsal(staged, head, rehearsed, weight=weight, settings=settings, device=device, ranks=ranks))
        told["rehearsal"] = {"weight": settings.rehearse, **rehearsed.to_json()}
    return Held(terms=terms, told=told)
