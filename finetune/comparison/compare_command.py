"""``bin/compare``: a data set, backbones and methods in, or finished runs; a table, differences and a verdict out."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from featcache.commands.console import Console, run
from featcache.common.errors import UsageError
from finetune.comparison.asked_command import Asked, asked, check_name, embed_words, new_compare_parser

if TYPE_CHECKING:
    from featcache.cache.cache_file import Cache
    from finetune.comparison.cells import CellPlan
    from finetune.comparison.methods import Method
    from finetune.comparison.results import Cell, Comparison
    from finetune.comparison.running import Outcome, Watch


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    command = shlex.join(["compare", *(sys.argv[1:] if argv is None else argv)])
    return run(
        new_compare_parser(),
        lambda arguments, console: _dispatched(arguments, console, command),
        argv,
        on_interrupt="finished cells are kept: run the same command to go on",
    )


def _dispatched(arguments: argparse.Namespace, console: Console, command: str) -> dict[str, Any]:
    check_name(arguments.name)
    if arguments.recipe == "list":
        return _list_recipes(console)
    comparison = _of_runs(arguments, console) if arguments.runs else _run(arguments, console, command)
    return _tell(comparison, console, arguments)


def _list_recipes(console: Console) -> dict[str, Any]:
    from finetune.comparison.recipe import read_recipe, shipped

    found = {name: read_recipe(name) for name in shipped()}
    console.table("recipes", ("name", "what it compares"), [(name, each.about) for name, each in found.items()])
    return {"recipes": {name: each.about for name, each in found.items()}}


def _of_runs(arguments: argparse.Namespace, console: Console) -> Comparison:
    from featcache.common import hashing
    from finetune.comparison.assembling import assemble
    from finetune.comparison.finished_runs import cells_of_runs

    flags = (
        "recipe",
        "dataset",
        "backbone",
        "backbones",
        "methods",
        "seeds",
        "fractions",
        "epochs",
        "trials",
        "budget",
    )
    if given := [flag for flag in flags if getattr(arguments, flag)]:
        raise UsageError(f"--{given[0]} is for fitting, and finished runs are named: leave one of them out")
    cells = cells_of_runs(arguments.runs, runs_dir=arguments.runs_dir)
    digits = hashing.fingerprint([str(cell.run) for cell in cells])[:8]
    name = arguments.name or f"compare-{digits}"
    console.note(f"{len(cells)} finished runs")
    return assemble(
        cells,
        name=name,
        folder=arguments.runs_dir / name,
        cache_dir=arguments.cache_dir,
        settings={"runs": [str(cell.run) for cell in cells]},
    )


def _run(arguments: argparse.Namespace, console: Console, command: str) -> Comparison:
    from featcache.common import hashing
    from featcache.common.machine import keep_freed_memory
    from finetune.comparison.assembling import assemble
    from finetune.comparison.cells import Place, plan_cells
    from heads.excluding_command import exclusion_of

    began = time.monotonic()
    wanted = asked(arguments)
    if wanted.recipe:
        console.note(f"recipe {wanted.recipe}: {wanted.about}")
    place = Place(
        runs_dir=arguments.runs_dir.resolve(),
        cache_dir=arguments.cache_dir.resolve(),
        val_fraction=wanted.val_fraction,
        device=arguments.device,
        workers=arguments.workers,
        command=command,
        exclude=exclusion_of(arguments),
        record_test_curve=arguments.record_test_curve,
    )
    keep_freed_memory()
    plans = plan_cells(
        _embedded(wanted, arguments, console), place=place, seeds=wanted.seeds, fractions=wanted.fractions
    )
    if not plans:
        raise UsageError(f"no method of the recipe is for {', '.join(wanted.backbones)}: give --methods")
    settings = _settings(wanted, arguments)
    _tell_plan(console, plans, wanted)
    deadline = None if arguments.budget is None else began + arguments.budget
    cells = _cells(plans, console, deadline, arguments.budget)
    told = [[plan.fingerprint, plan.method.name] for plan in plans]
    name = arguments.name or f"{plans[0].cache.dataset}-compare-{hashing.fingerprint(told)[:8]}"
    return assemble(
        cells,
        name=name,
        folder=place.runs_dir / name,
        cache_dir=place.cache_dir,
        settings={**settings, "command": command},
    )


def _embedded(
    wanted: Asked, arguments: argparse.Namespace, console: Console
) -> Mapping[str, list[tuple[Method, Cache]]]:
    """The methods of each backbone, each with the cache of its features, made now where it is not there."""
    from featcache.cache.cache_file import Cache
    from featcache.commands.embed import embed, embed_parser

    found: dict[str, list[tuple[Method, Cache]]] = {}
    made: dict[tuple[str, ...], Cache] = {}
    for backbone in wanted.backbones:
        found[backbone] = []
        for method in wanted.methods_for(backbone):
            words = embed_words(wanted, arguments, backbone=backbone, preprocessing=method.preprocessing)
            if words not in made:
                told = embed(embed_parser().parse_args(words), console, words)
                made[words] = Cache.open(told["cache"])
            found[backbone].append((method, made[words]))
    return found


def _settings(wanted: Asked, arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "recipe": wanted.recipe,
        "about": wanted.about,
        "backbones": list(wanted.backbones),
        "methods": [{"name": method.name, **method.to_json()} for method in wanted.methods],
        "seeds": list(wanted.seeds),
        "fractions": list(wanted.fractions),
        "val_fraction": wanted.val_fraction,
        "trials": sorted({method.trials for method in wanted.methods if method.kind == "finetune"}),
        "budget_s": arguments.budget,
        "rows": {**wanted.rows},
    }


def _tell_plan(console: Console, plans: Sequence[CellPlan], wanted: Asked) -> None:
    tuned = [method for method in wanted.methods if method.kind == "finetune"]
    console.note(
        f"{len(plans)} cells: {len(wanted.methods)} methods, {len(wanted.seeds)} seeds; one split a seed for all "
        "methods, no refit on validation rows"
    )
    if tuned:
        budget = ", ".join(f"{count}" for count in sorted({method.trials for method in tuned}))
        console.note(
            f"  peak rates that each fine-tuning tries, chosen on validation: {budget}; heads search their grids"
        )


def _cells(plans: Sequence[CellPlan], console: Console, deadline: float | None, budget: float | None) -> list[Cell]:
    from finetune.comparison.running import Watch, run_cells

    @contextmanager
    def watching(plan: CellPlan) -> Iterator[Watch]:
        with console.progress(f"{_label(plan)}: training", "images") as progress:
            yield Watch(
                on_note=lambda note: console.note(f"  {note}"),
                on_candidate=console.candidate(_label(plan)),
                on_step=progress,
            )

    cells = []
    left = "" if budget is None else f"the budget of {budget / 60:g} minutes was spent"
    outcomes = run_cells(plans, deadline=deadline, left_out=left, watching=watching)
    for done, outcome in enumerate(outcomes, start=1):
        cells.append(outcome.cell)
        console.note(f"[{done}/{len(plans)}] {_label(outcome.plan)}: {_outcome(outcome)}")
    return cells


def _label(plan: CellPlan) -> str:
    rows = "" if plan.fraction == 1 else f", {100 * plan.fraction:g} % of the rows"
    return f"{plan.backbone}, {plan.method.name}, seed {plan.seed}{rows}"


def _outcome(outcome: Outcome) -> str:
    from finetune.comparison.results import LEFT_OUT

    if outcome.cell.failure is not None:
        loud = "" if outcome.cell.failure.startswith(LEFT_OUT) else "FAILED: "
        return f"{loud}{outcome.cell.failure}"
    assert outcome.cell.run is not None
    return f"found, {outcome.cell.run.name}" if outcome.found else f"{outcome.seconds:.1f} s, {outcome.cell.run.name}"


def _tell(comparison: Comparison, console: Console, arguments: argparse.Namespace) -> dict[str, Any]:
    """Show and keep the comparison; gives the JSON object."""
    from finetune.comparison.comparison_tables import differences_table, notes_of, results_table
    from finetune.comparison.keeping import keep

    console.table(*results_table(comparison))
    for note in notes_of(comparison):
        console.note(f"  {note}")
    if comparison.differences:
        console.table(*differences_table(comparison))
    for sentence in comparison.verdict.sentences:
        console.note(sentence)
    keep(comparison)
    comparison = _reported(comparison, console, arguments)
    keep(comparison)
    console.note(f"kept in {comparison.folder}")
    told = comparison.to_json()
    return {key: told[key] for key in ("table", "differences", "verdict", "report")}


def _reported(comparison: Comparison, console: Console, arguments: argparse.Namespace) -> Comparison:
    """The comparison with its report, where one can be written."""
    if arguments.no_report:
        return comparison
    if find_spec("jinja2") is None:
        console.note("  no report.html: pip install 'featcache[report]'")
        return comparison
    from finetune.comparison.report import write_report

    page = write_report(comparison, comparison.folder, cache_dir=arguments.cache_dir, projection=arguments.map)
    console.note(f"report {page}")
    return replace(comparison, report=page)
