"""A cell of fine-tuning in; its run out: some peak rates tried, the best by validation kept, test scored once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from featcache import layout
from featcache.backbones import Backbone
from featcache.datasets import ImageDataset, load_dataset
from featcache.embed_command import default_workers
from featcache.errors import UsageError, UserError
from featcache.files import one_line
from featcache.machine import choose_device, fast_precision
from finetune.cached_rows import TuningRows, backbone_of, origin_of, tuning_rows
from finetune.comparison.cells import CellPlan
from finetune.comparison.methods import AUTO, RATE_FACTORS
from finetune.linear_start import linear_start
from finetune.new_head import replace_head, set_head
from finetune.planning import make_plan
from finetune.plans import Plan
from finetune.publishing import publish
from finetune.rate_finder import FoundRates, find_rates
from finetune.settings import Settings, usual_rate
from finetune.training import train
from finetune.trunk_cache import TrunkCached, with_trunk_cache
from finetune.trunk_choice import choose_trunk
from finetune.tuned_run import fine_tune, run_record
from finetune.unfinished import is_unfinished, work_folder
from heads.rows import Rows, load_rows
from heads.runs import read_run

#: In this the maps have the bits that training from images would compute, so that whether they are cached, which
#: depends on the disk and on what is there, decides nothing else.
_STORAGE = "float32"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A peak rate that was tried; of one that failed, accuracy and loss are None and the reason is told."""

    lr: float
    epochs: int | None
    val_accuracy: float | None
    val_loss: float | None
    seconds: float
    failure: str | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class _Start:
    """What every trial begins with."""

    rows: Rows
    backbone: Backbone
    state: dict[str, torch.Tensor]
    settings: Settings
    device: torch.device

    def restore(self) -> None:
        self.backbone.staged.model.load_state_dict(self.state)


def run_tuned_cell(
    cell: CellPlan,
    *,
    on_note: Callable[[str], None] = lambda note: None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Try the method's rates, keep the best by validation accuracy, of equals by loss, and publish its run.

    Checkpoints of unfinished trials are gone on with. Every trial has all of the method's epochs.

    Args:
        cell: its head's run, where it begins with one, is finished.
        on_note: called with sentences for the user.
        on_step: called with the images that a trial has gone through, and all that it will.

    Returns:
        The run's ``run.json``.

    Raises:
        UserError: no trial ends with a finite loss, images are gone, the plan is not the model's, or what else keeps a
            fine-tuning from being done.
    """
    method, cache, place = cell.method, cell.cache, cell.place
    start = _begin(cell)
    staged = start.backbone.staged
    dataset = _dataset_of(cell)
    workers = default_workers(dataset, start.device) if place.workers is None else place.workers
    tuning = tuning_rows(
        cache, start.rows, device=start.device, augment=start.settings.augment, workers=workers, dataset=dataset
    )
    plan, notes = _plan(cell, start, rate=None)
    found = None
    if method.lr == AUTO:
        found = find_rates(staged, plan, tuning.train, settings=start.settings, device=start.device)
        plan, _ = _plan(cell, start, rate=found.suggested)
    work = work_folder(
        place.runs_dir,
        cell.fingerprint,
        command=place.command,
        resume=is_unfinished(place.runs_dir, cell.fingerprint),
    ).folder
    trunk = _trunk_of(cell, start, plan, tuning, on_note)
    rows = tuning if trunk is None else trunk.rows
    plans = [
        replace(plan, rates={group: float(f"{rate * factor:.12g}") for group, rate in plan.rates.items()})
        for factor in RATE_FACTORS[: method.trials]
    ]
    trials = [
        _try(start, each, rows, work / f"trial-{number}", _fingerprint(cell, number), on_step)
        for number, each in enumerate(plans)
    ]
    finished = [number for number, trial in enumerate(trials) if trial.val_accuracy is not None]
    if not finished:
        raise UserError(f"none of {len(trials)} rates ends well: {trials[0].failure}")
    best = max(finished, key=lambda number: (trials[number].val_accuracy or 0.0, -(trials[number].val_loss or 0.0)))
    start.restore()
    tuned = fine_tune(
        staged,
        plans[best],
        rows,
        settings=start.settings,
        device=start.device,
        refit=False,
        work=work / f"trial-{best}",
        fingerprint=_fingerprint(cell, best),
        resume=True,
    )
    rates = ", ".join(f"{trial.lr:.3g}" for trial in trials)
    notes.append(f"peak rate {trials[best].lr:.3g}: the highest validation accuracy of {len(trials)} ({rates})")
    record = run_record(
        cache,
        tuning,
        tuned,
        staged,
        weights=start.backbone.weights,
        device=start.device,
        command=place.command,
        notes=tuple(notes),
        trunk=trunk,
    )
    _add_trials(record, cell, trials, best, trunk, found)
    publish(cell.folder, record=record, tuned=tuned, model=staged.model, found=found)
    shutil.rmtree(work, ignore_errors=True)
    return record


def _begin(cell: CellPlan) -> _Start:
    method, cache = cell.method, cell.cache
    device = choose_device(cell.place.device)
    given = dict(method.settings)
    if given.get("precision", AUTO) == AUTO:
        given["precision"] = fast_precision(device) if device.type == "cuda" else "fp32"
    rows = load_rows(
        cache,
        subset=cell.subset,
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
    return _Start(rows=rows, backbone=backbone, state=state, settings=settings, device=device)


def _dataset_of(cell: CellPlan) -> ImageDataset:
    origin = origin_of(cell.cache)
    return load_dataset(origin.dataset, root=origin.root)


def _plan(cell: CellPlan, start: _Start, *, rate: float | None) -> tuple[Plan, list[str]]:
    """The plan at its first rate, and sentences on it.

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


def _trunk_of(
    cell: CellPlan, start: _Start, plan: Plan, tuning: TuningRows, on_note: Callable[[str], None]
) -> TrunkCached | None:
    """The rows with the maps of frozen stages, where that saves time."""
    choice = choose_trunk(
        "auto",
        cache=cell.cache,
        folder=cell.place.cache_dir,
        backbone=start.backbone,
        plan=plan,
        settings=start.settings,
        rows=start.rows,
        views=0,
        storage=_STORAGE,
        device=start.device,
        refit=False,
    )
    if choice.option is None:
        return None
    try:
        return with_trunk_cache(
            choice.option,
            cache=cell.cache,
            folder=cell.place.cache_dir,
            backbone=start.backbone,
            rows=tuning,
            settings=start.settings,
            device=start.device,
            on_note=on_note,
        )
    except UserError as error:
        on_note(f"trunk cache off after all: {one_line(error)}")
        return None


def _try(
    start: _Start,
    plan: Plan,
    rows: TuningRows,
    work: Path,
    fingerprint: str,
    on_step: Callable[[int, int], None],
) -> Trial:
    """Train at one rate, or go on with it; its checkpoint stays in ``work``."""
    work.mkdir(exist_ok=True)
    start.restore()
    lr, epochs = plan.rates[plan.head], plan.epochs
    try:
        trained = train(
            start.backbone.staged,
            plan,
            rows.train,
            settings=start.settings,
            validation=rows.val,
            device=start.device,
            checkpoint=work / "chosen.pt",
            fingerprint=fingerprint,
            resume=True,
            on_step=on_step,
        )
    except torch.cuda.OutOfMemoryError:
        raise
    except UserError as error:
        return Trial(lr=lr, epochs=None, val_accuracy=None, val_loss=None, seconds=0.0, failure=one_line(error))
    best = trained.history[trained.best_epoch - 1]
    seconds = float(sum(entry["seconds"] for entry in trained.history))
    assert epochs >= trained.best_epoch
    return Trial(
        lr=lr,
        epochs=trained.best_epoch,
        val_accuracy=best["val_accuracy"],
        val_loss=best["val_loss"],
        seconds=round(seconds, 3),
    )


def _fingerprint(cell: CellPlan, number: int) -> str:
    return layout.fingerprint({"cell": cell.fingerprint, "trial": number})


def _add_trials(
    record: dict[str, Any],
    cell: CellPlan,
    trials: list[Trial],
    best: int,
    trunk: TrunkCached | None,
    found: FoundRates | None,
) -> None:
    """Tell all trials, and count what they and the head to begin with cost."""
    cost = record["cost"]
    cost["fit_s"] = round(sum(trial.seconds for trial in trials), 3)
    cost["embed_s"] = 0.0 if trunk is None else float(trunk.cache.provenance["cost"])
    if cell.head is not None:
        head = read_run(cell.head.folder).record["cost"]
        cost["fit_s"] = round(cost["fit_s"] + head["fit_s"], 3)
        cost["embed_s"] += head["embed_s"]
    record["selection"]["trials"] = [
        {
            "params": {"lr": trial.lr},
            "epochs": trial.epochs,
            "val_accuracy": trial.val_accuracy,
            "val_loss": trial.val_loss,
            "seconds": trial.seconds,
            "failure": trial.failure,
            "chosen": number == best,
        }
        for number, trial in enumerate(trials)
    ]
    record["params"]["lr"] = trials[best].lr
    lrs = sorted(trial.lr for trial in trials)
    if len(lrs) > 1 and trials[best].lr in (lrs[0], lrs[-1]):
        record["selection"]["at_grid_edge"] = [*record["selection"]["at_grid_edge"], "lr"]
    if found is not None:
        record["range_test"] = found.to_json()
