"""The flags of ``bin/finetune`` in; the job that they ask for (rows, model, plan and settings), made ready, out."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from featcache.cache.cache_file import Cache
from featcache.commands.console import Console
from featcache.commands.embed import default_workers
from featcache.common import hashing
from featcache.common.machine import choose_device
from featcache.common.ranks import ALONE, Ranks
from featcache.maintenance.image_provenance import original_dataset
from featcache.models.backbones import Backbone
from featcache.sources.image_sets import ImageDataset
from finetune.asked_command import plan_of, settings_of
from finetune.cached_rows import TuningRows, backbone_of, tuning_rows
from finetune.holding import check_holding
from finetune.linear_start import linear_start
from finetune.new_head import replace_head, set_head
from finetune.plans import Plan
from finetune.settings import Settings
from finetune.synced_norms import check_norms
from finetune.trunk_choice import TrunkOption
from heads.comparing import find_run
from heads.rows import Rows


@dataclass(frozen=True, eq=False, kw_only=True)
class Job:
    """A fine-tuning that was asked for.

    Attributes:
        arguments, command: the flags, and the command that gave them.
        console: what the user sees.
        cache, rows: where the rows were chosen, and which.
        backbone: its model has the final layer that training begins with.
        own_head: the final layer that the weights came with.
        plan, settings, device: what trains, how, and where.
        refit: whether the final model is trained again on train and validation.
        ranks: the processes that do it together, joined.
    """

    arguments: argparse.Namespace
    command: str
    console: Console
    cache: Cache
    rows: Rows
    backbone: Backbone
    own_head: nn.Linear
    plan: Plan
    settings: Settings
    device: torch.device
    refit: bool
    ranks: Ranks = ALONE

    @property
    def stem(self) -> str:
        """What names of runs and pictures begin with."""
        return f"{self.cache.dataset}-{self.cache.encoder['backbone']}-{self.plan.method}"

    def workers(self, dataset: ImageDataset) -> int:
        """Threads that decode its images ahead."""
        given: int | None = self.arguments.workers
        return default_workers(dataset, self.device, self.ranks) if given is None else given

    def fingerprint(self, option: TrunkOption | None) -> str:
        """Of all that decides what weights come out, cached maps included; not of what only decides how fast."""
        told: dict[str, Any] = {
            "cache": self.cache.fingerprint,
            "rows": self.rows.fingerprint,
            "weights": self.backbone.weights["sha256"],
            "plan": self.plan.to_json(),
            "settings": self.settings.to_json(),
            "device": self.device.type,
            "refit": self.refit,
        }
        return hashing.fingerprint(told if option is None else {**told, "trunk": option.to_json()})


def prepared(
    arguments: argparse.Namespace, console: Console, command: str, cache: Cache, rows: Rows, ranks: Ranks = ALONE
) -> Job:
    """The model with the final layer that training begins with, and the plan for it; nothing is trained yet.

    Raises:
        UserError: weights or a head to begin with can't be had, or ranks were not asked for the same, or can't do it.
        UsageError: flags exclude one another, or ask for what the model does not have.
    """
    device = choose_device(arguments.device, local_rank=None if ranks.is_alone else ranks.local_rank)
    settings = settings_of(arguments, device)
    with ranks.in_turn():
        backbone = backbone_of(cache, from_scratch=arguments.from_scratch, seed=arguments.seed)
    staged = backbone.staged
    plan = asked_plan(arguments, backbone)
    check_holding(settings, plan)
    check_norms(staged, plan, device=device, ranks=ranks)
    own_head = staged.head
    replace_head(staged, len(rows.class_names), seed=arguments.seed)
    _tell_rows(console, cache, rows, backbone)
    if plan.init_head is not None:
        folder = find_run(arguments.init_head, arguments.runs_dir)
        set_head(staged, linear_start(folder, cache=cache, rows=rows, staged=staged))
        console.note(f"the final layer begins as the head of {folder}")
    job = Job(
        arguments=arguments,
        command=command,
        console=console,
        cache=cache,
        rows=rows,
        backbone=backbone,
        own_head=own_head,
        plan=plan,
        settings=settings,
        device=device,
        refit=not (arguments.no_refit or plan.init_head is not None),
        ranks=ranks,
    )
    ranks.require_same(job.fingerprint(None), "rows, weights or settings")
    return job


def asked_plan(arguments: argparse.Namespace, backbone: Backbone) -> Plan:
    """The plan for this model. Raises UsageError where flags exclude one another."""
    return plan_of(arguments, backbone.staged, pretrained=backbone.weights["name"] != "none")


def images_of(job: Job) -> TuningRows:
    """The job's rows with their images. Raises UserError where they are gone or differ from what was embedded."""
    with job.ranks.in_turn():
        dataset = original_dataset(job.cache)
    return tuning_rows(
        job.cache,
        job.rows,
        device=job.device,
        augment=job.settings.augment,
        workers=job.workers(dataset),
        dataset=dataset,
    )


def _tell_rows(console: Console, cache: Cache, rows: Rows, backbone: Backbone) -> None:
    told = f"{cache.encoder['backbone']} ({backbone.weights['name']})"
    console.note(f"cache {cache.path}: {cache.dataset}, {told}, {backbone.preprocessing.image_size} px")
    console.note(f"rows: {len(rows.train):,} train, {len(rows.val):,} val, {len(rows.test):,} test")
    for note in rows.notes:
        console.note(f"  {note}")
