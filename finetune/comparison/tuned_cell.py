"""A cell of fine-tuning in; its run out: some peak rates tried, the best by validation kept, test scored once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from featcache.commands.embed import default_workers
from featcache.common import hashing
from featcache.common.errors import UserError
from featcache.common.files import one_line
from featcache.maintenance.image_provenance import original_dataset
from finetune.cached_rows import TuningRows, tuning_rows
from finetune.comparison.cells import CellPlan
from finetune.comparison.methods import AUTO, RATE_FACTORS
from finetune.comparison.starting import Start, begin, first_plan
from finetune.comparison.trials import Trial, try_rate
from finetune.plans import Plan
from finetune.publishing import publish, trunk_canary
from finetune.rate_finder import FoundRates, find_rates
from finetune.trunk_cache import TrunkCached, with_trunk_cache
from finetune.trunk_choice import choose_trunk
from finetune.tuned_run import fine_tune, run_record
from finetune.unfinished import work_folder
from heads.runs import read_run

#: In this the maps have the bits that training from images would compute, so that whether they are cached, which
#: depends on the disk and on what is there, decides nothing else.
_STORAGE = "float32"


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
    start = begin(cell)
    staged = start.backbone.staged
    dataset = original_dataset(cell.cache)
    workers = default_workers(dataset, start.device) if place.workers is None else place.workers
    tuning = tuning_rows(
        cache, start.rows, device=start.device, augment=start.settings.augment, workers=workers, dataset=dataset
    )
    plan, notes = first_plan(cell, start, rate=None)
    found = None
    if method.lr == AUTO:
        found = find_rates(staged, plan, tuning.train, settings=start.settings, device=start.device)
        plan, _ = first_plan(cell, start, rate=found.suggested)
    with work_folder(place.runs_dir, cell.fingerprint, command=place.command, resume=True, or_new=True) as work:
        for told in work.notes:
            on_note(told)
        trunk = _trunk_of(cell, start, plan, tuning, on_note)
        rows = tuning if trunk is None else trunk.rows
        plans = [
            replace(plan, rates={group: float(f"{rate * factor:.12g}") for group, rate in plan.rates.items()})
            for factor in RATE_FACTORS[: method.trials]
        ]
        trials = [
            try_rate(
                start,
                each,
                rows,
                work.folder / f"trial-{number}",
                _fingerprint(cell, number),
                on_step,
                record_test_curve=place.record_test_curve,
            )
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
            work=work.folder / f"trial-{best}",
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
        canary = trunk_canary(start.backbone, precision=start.settings.precision, device=start.device)
        folder = publish(cell.folder, record=record, tuned=tuned, model=staged.model, canary=canary, found=found)
        work.remove()
    cell.check_published(folder, on_note)
    return record


def _trunk_of(
    cell: CellPlan, start: Start, plan: Plan, tuning: TuningRows, on_note: Callable[[str], None]
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


def _fingerprint(cell: CellPlan, number: int) -> str:
    return hashing.fingerprint({"cell": cell.fingerprint, "trial": number})


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
