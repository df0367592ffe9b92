"""``bin/fit-head``: caches and classifiers' names in; scored runs, a learning curve, or a ranking of the caches out."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.commands.console import Console, run
from featcache.common.disk import other_name_note
from heads.asked_command import (
    caches_of,
    check_flags,
    new_fit_head_parser,
    recipes_of,
    run_name,
    source_of,
    tell_rows,
    workers_of,
)

if TYPE_CHECKING:
    from heads.publishing import Finished, HeadPiece
    from heads.recipe import Recipe
    from heads.rows import Rows
    from heads.runs import Run

_LOUD = ("did not converge", "at the edge", "the best score is at", "the calibration cannot be judged")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    command = shlex.join(["fit-head", *(sys.argv[1:] if argv is None else argv)])
    return run(
        new_fit_head_parser(),
        lambda arguments, console: _dispatched(arguments, console, command),
        argv,
        on_interrupt="finished runs are kept: run the command again for the rest",
    )


def _dispatched(arguments: argparse.Namespace, console: Console, command: str) -> dict[str, Any]:
    check_flags(arguments)
    if arguments.rank:
        from heads.rank_command import rank

        return rank(arguments, console)
    if arguments.fractions or arguments.shots:
        from heads.curve_command import draw

        return draw(arguments, console, command)
    return _fit(arguments, console, command)


def _fit(arguments: argparse.Namespace, console: Console, command: str) -> dict[str, Any]:
    from heads.comparing import against_best, check_same_rows, find_run
    from heads.fit_head_tables import metrics_table, seeds_table
    from heads.publishing import HeadPiece, fit_and_publish
    from heads.runs import read_run
    from heads.summary import seeds_summary
    from heads.sweep import sweep

    recipes, workers = recipes_of(arguments), workers_of(arguments)
    caches = caches_of(arguments, console)
    stems = [f"{caches[0].dataset}-{'+'.join(c.encoder['backbone'] for c in caches)}-{r.clf}" for r in recipes]
    folders = _folders(arguments, recipes, stems)
    against = {folder: read_run(folder) for folder in (find_run(p, arguments.runs_dir) for p in arguments.against)}
    source = source_of(arguments, *caches)
    tell_rows(console, source)
    rows = source.rows()
    check_same_rows(rows.test.ids, against)
    for note in _seed_notes(rows, recipes):
        console.note(f"  {note}")
    pieces = [
        HeadPiece(
            source=source,
            recipe=recipe,
            folder=folder.resolve(),
            command=command,
            against=tuple(path.resolve() for path in against),
            numbered=arguments.name is None,
        )
        for recipe, folder in zip(recipes, folders, strict=True)
    ]

    def work(piece: HeadPiece) -> Finished:
        return fit_and_publish(piece, console.candidate(piece.recipe.clf))

    finished = []
    results = map(work, pieces) if workers.alone else sweep(fit_and_publish, pieces, workers)
    for wanted, done in zip(folders, results, strict=True):
        finished.append(done)
        folder = wanted.with_name(done.folder.name)
        if arguments.name is not None and folder != wanted:
            console.note(other_name_note(wanted, folder))
        _tell(console, done, folder)
        if arguments.report:
            _report(console, read_run(folder), folder)
    records = [done.record for done in finished]
    console.table(*metrics_table(records))
    if any(record["selection"]["val_is_of_best_epoch"] for record in records):
        console.note("* of the best epoch on the rows that chose it, and so too high to choose among heads by")
    if len(records) == 1:
        return records[0]
    told: dict[str, Any] = {"runs": records}
    if arguments.seeds > 1:
        told["summary"] = seeds_summary(records)
        console.table(*seeds_table(told["summary"]))
    first = {d.folder.name: read_run(d.folder) for d in finished if d.record["seed"] == arguments.seed}
    if len(first) > 1:
        told["comparisons"] = against_best(first)
        _show_comparisons(console, told["comparisons"])
    return told


def _show_comparisons(console: Console, comparisons: Sequence[Mapping[str, Any]]) -> None:
    from heads.fit_head_tables import comparisons_table

    if not comparisons:
        console.note("not compared: each validation accuracy is that of a best epoch; add another --clf, or --nested")
        return
    best, highest = (comparisons[0][key] for key in ("reference_method", "reference_has_highest"))
    title = f"test accuracy beside that of {best}, which has the highest {highest}"
    console.table(*comparisons_table(title, [{**each, "run": each["method"]} for each in comparisons]))


def _folders(arguments: argparse.Namespace, recipes: Sequence[Recipe], stems: Sequence[str]) -> list[Path]:
    """Where each run goes."""
    from heads.runs import new_run_name

    taken: list[str] = []
    for recipe, stem in zip(recipes, stems, strict=True):
        if arguments.name is None:
            taken.append(new_run_name(arguments.runs_dir, stem, taken=taken))
        else:
            taken.append(run_name(arguments, recipe.seed))
    return [arguments.runs_dir / name for name in taken]


def _seed_notes(rows: Rows, recipes: Sequence[Recipe]) -> list[str]:
    from heads.recipe import RANDOM

    fixed = {
        r.clf
        for r in recipes
        if r.clf not in RANDOM
        and r.nested is None
        and (r.cv == "loo" or (r.cv is None and not r.calibrate))  # a temperature is fitted in folds that are drawn
    }
    if len({recipe.seed for recipe in recipes}) == 1 or not fixed:
        return []
    if not rows.own_validation and any(recipe.cv is None for recipe in recipes):
        return []
    which = ", ".join(sorted(fixed))
    return [f"the seed changes nothing for {which}: nothing in it is random, and the rows that validate stay the same"]


def _tell(console: Console, done: Finished, folder: Path) -> None:
    from heads.fit_head_tables import calibration_table, comparisons_table, interval

    record = done.record
    chosen = ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in record["params"].items())
    console.note(f"{record['method']}: {chosen or 'nothing to choose'}; {record['cost']['fit_s']:.1f} s; run {folder}")
    for note in done.notes:
        loud = "WARNING: " if note.startswith(_LOUD) else ""
        console.note(f"  {loud}{note}")
    candidates = record["selection"]["candidates"]
    unfinished = sum(each["converged"] is False and each["params"] != record["params"] for each in candidates)
    if unfinished:
        console.note(f"  {unfinished} of the other {len(candidates) - 1} candidates did not converge: see run.json")
    if nested := record["selection"]["nested"]:
        console.note(
            f"  the procedure, chosen anew in {nested['folds']} folds, on rows it never saw: accuracy "
            f"{nested['accuracy']:.4f} ({interval(nested['accuracy_ci95'])})"
        )
    if record["calibration"]:
        console.table(*calibration_table(record["calibration"]))
    if record.get("comparisons"):
        title = f"test accuracy of {folder.name} minus that of"
        console.table(*comparisons_table(title, record["comparisons"]))


def _report(console: Console, finished: Run, folder: Path) -> None:
    from heads.evidence.calibration import reliability
    from heads.evidence.confusions import most_confused
    from heads.evidence.metrics import confusion, per_class
    from heads.fit_head_tables import ALL_CONFUSIONS, report_tables

    names, test = finished.record["dataset"]["class_names"], finished.record["metrics"]["test"]
    labels, scores = finished.predictions["test_labels"], finished.predictions["test_scores"]
    predicted, n_classes = scores.argmax(axis=1), len(names)
    matrix = confusion(labels, predicted, n_classes)
    pairs = most_confused(labels, predicted, finished.predictions["test_ids"], n_classes, scores=scores)
    for table in report_tables(names, per_class(labels, predicted, n_classes), matrix, pairs):
        console.table(*table)
    bins = None if test["ece"] is None else reliability(scores, labels)
    if bins is not None:
        lines = [
            (f"{low / 15:.2f}–{(low + 1) / 15:.2f}", f"{count:,}", f"{sure:.4f}", f"{right:.4f}")
            for low, (count, sure, right) in enumerate(zip(bins.count, bins.confidence, bins.accuracy, strict=True))
            if count
        ]
        console.table("reliability of the highest probability", ("bin", "rows", "confidence", "accuracy"), lines)
    try:
        from heads import plots
    except ModuleNotFoundError:
        console.note("  no pictures of it: pip install 'featcache[plots]'")
        return
    if n_classes <= ALL_CONFUSIONS:
        console.note(f"  drawn in {plots.draw_confusion(matrix, names, folder / 'confusion.png')}")
    if bins is not None:
        console.note(f"  drawn in {plots.draw_reliability(bins, folder / 'reliability.png')}")
