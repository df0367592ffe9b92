"""``bin/finetune``: a cache and flags in; the backbone trained on the cache's images, as a scored run, out."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from featcache.commands.console import Console, run
from featcache.common.disk import other_name_note
from featcache.common.errors import UserError
from featcache.common.files import one_line
from featcache.common.ranks import ALONE, Ranks
from finetune.asked_command import AUTO, cache_of, check_flags, new_finetune_parser, rows_of
from finetune.forgetting_command import forgetting_table, rehearsed_by, score_start, score_tuned
from finetune.trunk_command import trunk_cached, trunk_choice_of
from finetune.unfinished import BEGIN_ANEW

if TYPE_CHECKING:
    from finetune.cached_rows import TuningRows
    from finetune.job_command import Job
    from finetune.plans import Plan
    from finetune.rate_finder import FoundRates
    from finetune.rehearsal import Rehearsed
    from finetune.trunk_choice import TrunkChoice
    from finetune.tuned_run import TunedRun


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    command = shlex.join(["finetune", *(sys.argv[1:] if argv is None else argv)])
    ranks = Ranks.of_environment()

    def work(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
        check_flags(arguments)
        with ranks.joined(tensors=True):
            return _dispatched(arguments, console, command, ranks)

    return run(new_finetune_parser(), work, argv, on_interrupt=BEGIN_ANEW, ranks=ranks)


def _dispatched(arguments: argparse.Namespace, console: Console, command: str, ranks: Ranks = ALONE) -> dict[str, Any]:
    cache = cache_of(arguments, console)
    rows = rows_of(arguments, cache)

    from featcache.common.machine import keep_freed_memory
    from finetune.job_command import asked_plan, images_of, prepared

    keep_freed_memory()
    job = prepared(arguments, console, command, cache, rows, ranks)
    if arguments.dry_run:
        choice = _tell_plan(job)
        return {**_plan_json(job), "trunk_cache": choice.why}
    tuning = images_of(job)
    if arguments.probe:
        from finetune.advice_command import probe_and_tell

        with _refusals_told(job):
            return probe_and_tell(job, tuning.train) if ranks.is_first else {}
    found = None
    if arguments.find_lr or arguments.lr == AUTO:
        from finetune.advice_command import find_and_tell

        with _refusals_told(job):
            found = find_and_tell(job, tuning.train) if ranks.is_first else None
        if arguments.find_lr:
            return found.to_json() if found else {}
        arguments.lr = ranks.share(found and found.suggested)
        job = replace(job, plan=asked_plan(arguments, job.backbone))
    rehearsed = rehearsed_by(job)
    if rehearsed is not None:
        job = replace(job, settings=replace(job.settings, rehearsed=rehearsed.cache.fingerprint))
    return _train(job, tuning, _tell_plan(job), found=found, rehearsed=rehearsed)


def _train(
    job: Job, tuning: TuningRows, choice: TrunkChoice, *, found: FoundRates | None, rehearsed: Rehearsed | None
) -> dict[str, Any]:
    from finetune.holding import held
    from finetune.publishing import publish, trunk_canary
    from finetune.tuned_run import fine_tune, run_record
    from finetune.unfinished import work_folder
    from heads.runs import new_run_name

    arguments, console, plan, ranks = job.arguments, job.console, job.plan, job.ranks
    staged = job.backbone.staged
    note = (
        "the final model is trained again on train and validation, for as many epochs as were best"
        if job.refit
        else "the final model is the best epoch's, trained without validation rows"
    )
    console.note(f"  {note}")
    fingerprint = job.fingerprint(choice.option)
    holding_folder = work_folder(
        arguments.runs_dir, fingerprint, command=job.command, resume=arguments.resume, ranks=ranks
    )
    with holding_folder as work, work.used(), _refusals_told(job):
        for told in work.notes:
            console.note(f"  {told}")
        before = score_start(job)
        notes, option, trunk = [note, choice.why], choice.option, None
        if option is not None:
            trunk = trunk_cached(job, option, tuning)
            option = None if trunk is None else option
            notes.append("trunk cache off: it could not be made" if trunk is None else trunk.told(plan))
            console.note(f"  {notes[-1]}")
        holding = held(
            staged,
            plan,
            tuning.train,
            head=job.own_head,
            settings=job.settings,
            device=job.device,
            rehearsed=rehearsed,
            ranks=ranks,
        )
        with console.progress("training", "images") as progress:
            tuned = fine_tune(
                staged,
                plan,
                tuning if trunk is None else trunk.rows,
                settings=job.settings,
                device=job.device,
                terms=holding.terms,
                ranks=ranks,
                refit=job.refit,
                record_test_curve=arguments.record_test_curve,
                work=work.folder,
                fingerprint=job.fingerprint(option),
                resume=arguments.resume,
                on_epoch=_epoch_teller(console, plan, refit=job.refit),
                on_step=progress,
            )
        record = run_record(
            job.cache,
            tuning,
            tuned,
            staged,
            weights=job.backbone.weights,
            device=job.device,
            command=job.command,
            notes=tuple(notes),
            trunk=trunk,
            held=holding.told,
            ranks=ranks,
        )
        if found is not None:
            record["range_test"] = found.to_json()
        if before is not None:
            record["forgetting"] = score_tuned(job, before)
        if not ranks.is_first:
            return {}
        canary = trunk_canary(job.backbone, precision=job.settings.precision, device=job.device)
        wanted = arguments.runs_dir / (arguments.name or new_run_name(arguments.runs_dir, job.stem))
        folder = publish(
            wanted,
            record=record,
            tuned=tuned,
            model=staged.model,
            canary=canary,
            found=found,
            numbered=arguments.name is None,
        )
        work.remove()
    if arguments.name is not None and folder != wanted:
        console.note(other_name_note(wanted, folder))
    console.note(f"{plan.method}: {record['selection']['how']}; {record['cost']['fit_s']:.1f} s; run {folder}")
    _tell_record(console, record, tuned)
    return record


@contextmanager
def _refusals_told(job: Job) -> Iterator[None]:
    """Say what mends it where memory is too little, or where torch.compile fails."""
    import torch

    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        mend = "take a smaller --batch-size with --accumulate, --checkpointing, or --precision bf16"
        size = job.settings.batch_size
        raise UserError(f"{job.device} has too little memory for batches of {size}: {mend}") from error
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:
        if not job.settings.compile:
            raise
        reason = one_line(error) or type(error).__name__
        raise UserError(f"--compile: torch.compile does not take this model here ({reason}): leave it out") from error


def _tell_plan(job: Job) -> TrunkChoice:
    """Show the plan, and decide and tell whether frozen stages run once."""
    from featcache.common.machine import device_name
    from finetune.plan_tables import phases_table, stages_table, told_counts

    staged = job.backbone.staged
    job.console.table(*stages_table(job.plan, staged))
    job.console.table(*phases_table(job.plan, staged, job.settings, n_train=len(job.rows.train)))
    job.console.note(told_counts(job.plan, staged))
    if staged.reason:
        job.console.note(f"  the model has no inner stages: {staged.reason}")
    job.console.note(f"device {job.device} ({device_name(job.device)}), {job.settings.precision}")
    if not job.ranks.is_alone:
        on = ", ".join(f"{count} on {name}" for name, count in Counter(job.ranks.gather(str(job.device))).items())
        job.console.note(f"{job.ranks.size} ranks share each batch of {job.settings.batch_size}: {on}")
    choice = trunk_choice_of(job)
    job.console.note(choice.why)
    return choice


def _plan_json(job: Job) -> dict[str, Any]:
    from finetune.thawing import count_parameters

    trainable, total = count_parameters(job.backbone.staged, job.plan.trained)
    return {
        "plan": job.plan.to_json(),
        "settings": job.settings.to_json(),
        "trainable_params": trainable,
        "frozen_params": total - trainable,
        "total_params": total,
    }


def _tell_record(console: Console, record: dict[str, Any], tuned: TunedRun) -> None:
    from finetune.plan_tables import changes_table
    from heads.fit_head_tables import metrics_table

    if record["selection"]["at_grid_edge"]:
        console.note("  WARNING: the last epoch was the best: more --epochs may do better")
    console.table(*changes_table(tuned.changes))
    if tuned.interpolated is not None:
        console.note(f"  weights: {tuned.interpolated.share:g} of the tuned ones, the rest of the start")
    console.table(*metrics_table([record]))
    if "forgetting" in record:
        console.table(*forgetting_table(record["forgetting"]))


def _epoch_teller(console: Console, plan: Plan, *, refit: bool) -> Callable[[dict[str, Any]], None]:
    """A line an epoch; the time left counts a second training as one of as many epochs."""

    def tell(entry: dict[str, Any]) -> None:
        again = entry["phase"].startswith("refit:")
        left = plan.epochs - entry["epoch"]
        if refit and not again:
            left += plan.epochs
        val = "" if entry["val_accuracy"] is None else f", val {entry['val_loss']:.4f} {entry['val_accuracy']:.4f}"
        if "test_accuracy" in entry:
            val += f" (test {entry['test_loss']:.4f} {entry['test_accuracy']:.4f}, used for nothing)"
        console.note(
            f"{'refit, ' if again else ''}epoch {entry['epoch']}/{plan.epochs}, "
            f"{entry['phase'].removeprefix('refit:')}: train {entry['train_loss']:.4f} {entry['train_accuracy']:.4f}"
            f"{val}; lr {entry['lr']:.2g}; {entry['images_per_s']:,.1f} images/s, at most "
            f"{left * entry['seconds']:,.0f} s left"
        )

    return tell
