"""``bin/fit-head --fractions`` and ``--shots``: a cache in; test accuracy by the number of training rows out."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from featcache.commands.console import Console
from featcache.common.disk import other_name_note
from heads.asked_command import caches_of, recipes_of, source_of, tell_rows, workers_of


def draw(arguments: argparse.Namespace, console: Console, command: str) -> dict[str, Any]:
    """The mode; returns its JSON object, which is ``curve.json``."""
    from heads.evidence.power_law import fit_power_law
    from heads.fit_head_tables import curve_table
    from heads.learning_curve import CurvePiece, Size, check_sizes, curve_notes, curve_point, summarised
    from heads.publishing import write_curve
    from heads.runs import created_now, new_run_name
    from heads.sweep import sweep

    recipes, workers, caches = recipes_of(arguments), workers_of(arguments), caches_of(arguments, console)
    sizes = [Size(fraction=f) for f in arguments.fractions or ()] + [Size(shots=n) for n in arguments.shots or ()]
    stem = f"{caches[0].dataset}-{'+'.join(c.encoder['backbone'] for c in caches)}-{recipes[0].clf}-curve"
    source = source_of(arguments, *caches)
    tell_rows(console, source)
    rows = source.rows()
    check_sizes(rows, sizes)
    pieces = [CurvePiece(source=source, recipe=recipe, size=size) for size in sizes for recipe in recipes]
    points = []
    with console.progress("fitted", "heads") as progress:
        for point in sweep(curve_point, pieces, workers):
            points.append(point)
            progress(len(points), len(pieces))
    law = fit_power_law(
        [point["n_train"] for point in points],
        [1 - point["test_accuracy"] for point in points],
        n_test=len(rows.test),
        seed=arguments.seed,
    )
    curve = {
        "schema": 1,
        "kind": "curve",
        "method": recipes[0].clf,
        "command": command,
        "created": created_now(),
        "seeds": [recipe.seed for recipe in recipes],
        "dataset": {"name": caches[0].dataset, "fingerprint": rows.fingerprint, "n_test": len(rows.test)},
        "encoder": {"backbone": " + ".join(cache.encoder["backbone"] for cache in caches)},
        "caches": [{"file": cache.path.name, "fingerprint": cache.fingerprint} for cache in caches],
        "sizes": summarised(points, len(rows.test)),
        "power_law": law and asdict(law),
        "notes": [*rows.notes, *(notes := curve_notes(rows, points))],
    }
    wanted = arguments.runs_dir / (arguments.name or new_run_name(arguments.runs_dir, stem))
    folder = write_curve(wanted, curve, law, numbered=arguments.name is None)
    if arguments.name is not None and folder != wanted:
        console.note(other_name_note(wanted, folder))
    console.table(*curve_table(curve))
    for note in notes:
        console.note(f"  {note}")
    if law is None:
        console.note("  no power law: it takes at least three sizes")
    else:
        there = law.twice
        console.note(
            f"  error = {law.a:.3g} n^-{law.b:.3g} + {law.c:.3g}: twice the data, {there.n:,} rows, would bring an "
            f"accuracy of {there.accuracy:.4f} ({there.low:.4f} to {there.high:.4f})"
        )
    console.note(f"curve {folder}")
    return curve
