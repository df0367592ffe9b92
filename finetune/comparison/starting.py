"""A cell of fine-tuning in; the model, rows and settings that all its trials begin with, and its plan, out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from featcache.common.errors import UsageError
from featcache.common.machine import choose_device, fast_precision
from featcache.models.backbones import Backbone
from finetune.cached_rows import backbone_of
from finetune.comparison.cells import CellPlan
from finetune.interpolation import overwrite
from finetune.linear_start import linear_start
from finetune.new_head import replace_head, set_head
from finetune.planning import make_plan
from finetune.plans import Plan
from finetune.settings import Settings, usual_rate
from heads.rows import Rows, load_rows

#: A precision that is left to the device.
_AUTO = "auto"


@dataclass(frozen=True, eq=False, kw_only=True)
class Start:
    """What every trial of a cell begins with.

    Attributes:
        rows: to train, choose and test on.
        backbone: its model has the final layer that training begins with.
        state: the model's weights and statistics.
        settings, device: how and where to train.
    """

    rows: Rows
    backbone: Backbone
    state: dict[str, torch.Tensor]
    settings: Settings
    device: torch.device

    def restore(self) -> None:
        """Give the model the weights that it began with."""
        overwrite(self.backbone.staged.model.state_dict(), self.state)


def begin(cell: CellPlan) -> Start:
    """The model and the rows of a cell, made ready.

    Raises:
        UserError: weights, or a head to begin with, can't be had, or rows are too few.
    """
    method, cache = cell.method, cell.cache
    device = choose_device(cell.place.device)
    given = dict(method.settings)
    if given.get("precision", _AUTO) == _AUTO:
        given["precision"] = fast_precision(device) if device.type == "cuda" else "fp32"
    rows = load_rows(
        cache,
        subset=cell.subset,
        exclude=cell.place.exclude,
        val_fraction=cell.place.val_fraction,
        seed=cell.seed,
        pool_maps=True,
        views="plain",
        rows_only=True,
    )
    backbone = backbone_of(cache, from_scratch=method.what == "scratch", seed=cell.seed)
    staged = backbone.staged
    replace_head(staged, len(rows.class_names), seed=cell.seed)
    if cell.head is not None:
        set_head(staged, linear_start(cell.head.folder, cache=cache, rows=rows, staged=staged))
    state = {name: tensor.detach().clone() for name, tensor in staged.model.state_dict().items()}
    settings = Settings(**given, seed=cell.seed)
    return Start(rows=rows, backbone=backbone, state=state, settings=settings, device=device)


def first_plan(cell: CellPlan, start: Start, *, rate: float | None) -> tuple[Plan, list[str]]:
    """The plan at the rate that is tried first, the method's own unless one is given, and sentences on it.

    Raises:
        UsageError: the model has no such stages, or the epochs are too few.
    """
    method, staged = cell.method, start.backbone.staged
    stages = [stage.name for stage in staged.stages]
    flags: dict[str, Any] = {
        "epochs": method.epochs,
        "pretrained": start.backbone.weights["name"] != "none",
        "init_head": None if cell.head is None else str(cell.head.folder),
        **method.plan,
    }
    notes = []
    if method.what == "progressive" and "unfreeze" not in flags and not flags.get("phase_epochs"):
        most = (method.epochs or max(10, len(stages) + 1)) - 1
        if not most:
            raise UsageError("progressive takes at least 2 epochs: one for the head, one for the last stage")
        if most < len(stages):
            flags["unfreeze"] = f"last:{most}"
            notes.append(f"thaws the last {most} of {len(stages)} stages, one an epoch: it has no more epochs")
    trains = make_plan(stages, staged.head_name, lr=1.0, **flags).trained
    usual = usual_rate(start.settings.optimizer, trains=bool(trains), from_scratch=method.what == "scratch")
    own = usual if method.lr is None or isinstance(method.lr, str) else method.lr
    asked = own if rate is None else rate
    return make_plan(stages, staged.head_name, lr=asked, **flags), notes
