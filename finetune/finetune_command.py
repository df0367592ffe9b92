"""``bin/finetune``: a cache and flags in; the backbone trained on the cache's images, as a scored run, out."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from featcache.command_line import Console, run
from featcache.errors import UserError
from finetune.asked_command import (
    AUTO,
    cache_of,
    check_flags,
    new_finetune_parser,
    plan_of,
    rows_of,
    settings_of,
)
from finetune.forgetting_command import forgetting_table, rehearsed_by, score_start, score_tuned
from finetune.trunk_command import trunk_cached, trunk_choice_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from featcache.backbones import Backbone
    from featcache.cache import Cache
    from finetune.cached_rows import TuningRows
    from finetune.plans import Plan
    from finetune.rate_finder import FoundRates
    from finetune.rehearsal import Rehearsed
    from finetune.settings import Settings
    from finetune.trunk_choice import TrunkChoice, TrunkOption
    from heads.rows import Rows


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    command = shlex.join(["finetune", *(sys.argv[1:] if argv is None else argv)])
    return run(
        new_finetune_parser(),
        lambda arguments, console: _tune(arguments, console, command),
        argv,
        on_interrupt="run the same command with --resume to go on from the last epoch that was kept",
    )


def _tune(arguments: argparse.Namespace, console: Console, command: str) -> dict[str, Any]:
    check_flags(arguments)
    cache = cache_of(arguments)
    rows = rows_of(arguments, cache)

    from featcache.machine import choose_device, device_name, keep_freed_memory
    from finetune.cached_rows import backbone_of
    from finetune.holding import check_holding
    from finetune.new_head import replace_head, set_head
    from finetune.unfinished import fingerprint_of

    keep_freed_memory()
    device = choose_device(arguments.device)
    settings = settings_of(arguments, device)
    backbone = backbone_of(cache, from_scratch=arguments.from_scratch, seed=arguments.seed)
    staged = backbone.staged
    plan = plan_of(arguments, staged, pretrained=backbone.weights["name"] != "none")
    check_holding(settings, plan)
    own_head = staged.head
    replace_head(staged, len(rows.class_names), seed=arguments.seed)
    _tell_rows(console, cache, rows, backbone)
    if plan.init_head is not None:
        from finetune.linear_start import linear_start
        from heads.comparing import find_run

        folder = find_run(arguments.init_head, arguments.runs_dir)
        set_head(staged, linear_start(folder, cache=cache, rows=rows, staged=staged))
        console.note(f"the final layer begins as the head of {folder}")
    refit = not (arguments.no_refit or plan.init_head is not None)
    found = None
    tuning = None if arguments.dry_run else _images(arguments, cache, rows, settings, device)
    if tuning is not None and arguments.probe:
        from finetune.advice_command import probe_and_tell

        fitted = plan.init_head is not None
        with _enough_memory(device, settings):
            return probe_and_tell(console, staged, tuning.train, settings=settings, device=device, fitted=fitted)
    if tuning is not None and (arguments.find_lr or arguments.lr == AUTO):
        from finetune.advice_command import find_and_tell

        drawn = None
        if arguments.find_lr:
            method = plan.method.replace(":", "_")
            drawn = arguments.runs_dir / f"{cache.dataset}-{cache.encoder['backbone']}-{method}-lr.png"
        with _enough_memory(device, settings):
            found = find_and_tell(console, staged, plan, tuning.train, settings=settings, device=device, drawn=drawn)
        if arguments.find_lr:
            return found.to_json()
        arguments.lr = found.suggested
        plan = plan_of(arguments, staged, pretrained=backbone.weights["name"] != "none")
    _tell_plan(console, plan, backbone, settings, n_train=len(rows.train))
    console.note(f"device {device} ({device_name(device)}), {settings.precision}")
    rehearsed = None
    if not arguments.dry_run:
        rehearsed = rehearsed_by(arguments, console, cache, backbone, device)
    if rehearsed is not None:
        settings = replace(settings, rehearsed=rehearsed.cache.fingerprint)

    def fingerprint(option: TrunkOption | None) -> str:
        trunk = None if option is None else option.to_json()
        return fingerprint_of(cache, rows, backbone, plan, settings, device=device, refit=refit, trunk=trunk)

    choice = trunk_choice_of(
        arguments, cache, rows, backbone, plan, settings, device, refit=refit, fingerprint=fingerprint
    )
    console.note(choice.why)
    if arguments.dry_run:
        return {**_told_plan(plan, backbone, settings), "trunk_cache": choice.why}
    assert tuning is not None
    return _train(
        arguments,
        console,
        command,
        cache,
        tuning,
        backbone,
        plan,
        settings,
        device,
        refit,
        choice,
        fingerprint,
        found,
        own_head,
        rehearsed,
    )


def _train(
    arguments: argparse.Namespace,
    console: Console,
    command: str,
    cache: Cache,
    tuning: TuningRows,
    backbone: Backbone,
    plan: Plan,
    settings: Settings,
    device: torch.device,
    refit: bool,
    choice: TrunkChoice,
    fingerprint: Callable[[TrunkOption | None], str],
    found: FoundRates | None,
    own_head: nn.Linear,
    rehearsed: Rehearsed | None,
) -> dict[str, Any]:
    from finetune.holding import held
    from finetune.plan_tables import changes_table
    from finetune.publishing import publish
    from finetune.tuned_run import fine_tune, run_record
    from finetune.unfinished import work_folder
    from heads.fit_head_tables import metrics_table
    from heads.runs import new_run_name

    note = (
        "the final model is trained again on train and validation, for as many epochs as were best"
        if refit
        else "the final model is the best epoch's, trained without validation rows"
    )
    console.note(f"  {note}")
    option, trunk, notes = choice.option, None, [note, choice.why]
    work = work_folder(arguments.runs_dir, fingerprint(option), command=command, resume=arguments.resume)
    for told in work.notes:
        console.note(f"  {told}")
    before = score_start(arguments, console, cache, backbone, device)
    with _enough_memory(device, settings):
        if option is not None:
            trunk = trunk_cached(arguments, console, command, option, cache, tuning, backbone, settings, device)
        if option is not None and trunk is None:
            option = None
            notes[1] = "trunk cache off: it could not be made"
            shutil.rmtree(work.folder, ignore_errors=True)
            work = work_folder(arguments.runs_dir, fingerprint(None), command=command, resume=False)
        if trunk is not None:
            notes.append(trunk.told(plan))
            console.note(f"  {notes[-1]}")
        holding = held(
            backbone.staged,
            plan,
            tuning.train,
            head=own_head,
            settings=settings,
            device=device,
            rehearsed=rehearsed,
        )
        with console.progress("training", "images") as progress:
            tuned = fine_tune(
                backbone.staged,
                plan,
                tuning if trunk is None else trunk.rows,
                settings=settings,
                device=device,
                terms=holding.terms,
                refit=refit,
                work=work.folder,
                fingerprint=fingerprint(option),
                resume=arguments.resume,
                on_epoch=_epoch_teller(console, plan, refit=refit),
                on_step=progress,
            )
    record = run_record(
        cache,
        tuning,
        tuned,
        backbone.staged,
        weights=backbone.weights,
        device=device,
        command=command,
        notes=tuple(notes),
        trunk=trunk,
        held=holding.told,
    )
    if found is not None:
        record["range_test"] = found.to_json()
    if before is not None:
        record["forgetting"] = score_tuned(arguments, console, cache, backbone, device, before)
    stem = f"{cache.dataset}-{cache.encoder['backbone']}-{plan.method}"
    folder = arguments.runs_dir / (arguments.name or new_run_name(arguments.runs_dir, stem))
    publish(folder, record=record, tuned=tuned, model=backbone.staged.model, found=found)
    shutil.rmtree(work.folder, ignore_errors=True)
    console.note(f"{plan.method}: {record['selection']['how']}; {record['cost']['fit_s']:.1f} s; run {folder}")
    if record["selection"]["at_grid_edge"]:
        console.note("  WARNING: the last epoch was the best: more --epochs may do better")
    console.table(*changes_table(tuned.changes))
    if tuned.interpolated is not None:
        console.note(f"  weights: {tuned.interpolated.share:g} of the tuned ones, the rest of the start")
    console.table(*metrics_table([record]))
    if "forgetting" in record:
        console.table(*forgetting_table(record["forgetting"]))
    return record


@contextmanager
def _enough_memory(device: torch.device, settings: Settings) -> Iterator[None]:
    """Say what mends it where there is not."""
    import torch

    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        mend = "take a smaller --batch-size with --accumulate, --checkpointing, or --precision bf16"
        raise UserError(f"{device} has too little memory for batches of {settings.batch_size}: {mend}") from error


def _images(
    arguments: argparse.Namespace, cache: Cache, rows: Rows, settings: Settings, device: torch.device
) -> TuningRows:
    from featcache.datasets import load_dataset
    from featcache.embed_command import default_workers
    from finetune.cached_rows import origin_of, tuning_rows

    origin = origin_of(cache)
    dataset = load_dataset(origin.dataset, root=origin.root)
    workers = default_workers(dataset, device) if arguments.workers is None else arguments.workers
    return tuning_rows(cache, rows, device=device, augment=settings.augment, workers=workers, dataset=dataset)


def _tell_rows(console: Console, cache: Cache, rows: Rows, backbone: Backbone) -> None:
    told = f"{cache.encoder['backbone']} ({backbone.weights['name']})"
    console.note(f"cache {cache.path}: {cache.dataset}, {told}, {backbone.preprocessing.image_size} px")
    console.note(f"rows: {len(rows.train):,} train, {len(rows.val):,} val, {len(rows.test):,} test")
    for note in rows.notes:
        console.note(f"  {note}")


def _tell_plan(console: Console, plan: Plan, backbone: Backbone, settings: Settings, *, n_train: int) -> None:
    from finetune.plan_tables import phases_table, stages_table, told_counts

    console.table(*stages_table(plan, backbone.staged))
    console.table(*phases_table(plan, backbone.staged, settings, n_train=n_train))
    console.note(told_counts(plan, backbone.staged))
    if backbone.staged.reason:
        console.note(f"  the model has no inner stages: {backbone.staged.reason}")


def _told_plan(plan: Plan, backbone: Backbone, settings: Settings) -> dict[str, Any]:
    from finetune.thawing import count_parameters

    trainable, total = count_parameters(backbone.staged, plan.trained)
    return {
        "plan": plan.to_json(),
        "settings": settings.to_json(),
        "trainable_params": trainable,
        "frozen_params": total - trainable,
        "total_params": total,
    }


def _epoch_teller(console: Console, plan: Plan, *, refit: bool) -> Callable[[dict[str, Any]], None]:
    """A line an epoch; the time left counts a second training as one of as many epochs."""

    def tell(entry: dict[str, Any]) -> None:
        again = entry["phase"].startswith("refit:")
        left = plan.epochs - entry["epoch"]
        if refit and not again:
            left += plan.epochs
        val = "" if entry["val_accuracy"] is None else f", val {entry['val_loss']:.4f} {entry['val_accuracy']:.4f}"
        console.note(
            f"{'refit, ' if again else ''}epoch {entry['epoch']}/{plan.epochs}, "
            f"{entry['phase'].removeprefix('refit:')}: train {entry['train_loss']:.4f} {entry['train_accuracy']:.4f}"
            f"{val}; lr {entry['lr']:.2g}; {entry['images_per_s']:,.1f} images/s, at most "
            f"{left * entry['seconds']:,.0f} s left"
        )

    return tell
