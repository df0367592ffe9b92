"""One head to fit in, as paths and settings; its finished run, or a curve, in a folder of its own out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from featcache.cache.canary import stored_canary
from featcache.common.disk import publish_folder
from heads.comparing import compared, named
from heads.evidence.power_law import PowerLaw
from heads.head_run import HeadRun, fit_head, head_meta, run_record
from heads.recipe import Recipe
from heads.runs import read_run, write_run
from heads.search import Report
from heads.source import Source

Line = tuple[str, list[float], list[float], list[float]]


@dataclass(frozen=True, kw_only=True)
class HeadPiece:
    """A run to be made: on which rows, how, where to, the command that asked, and the runs to compare it with.

    ``numbered`` says that the folder's name ends in a number that may become another one.
    """

    source: Source
    recipe: Recipe
    folder: Path
    command: str
    against: tuple[Path, ...] = ()
    numbered: bool = False


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run that was made: what ``run.json`` holds, notes of the selection alone, and the run's folder."""

    record: dict[str, Any]
    notes: list[str]
    folder: Path


def fit_and_publish(piece: HeadPiece, report: Report | None = None) -> Finished:
    """Fit a head and write its run. Raises UserError as fitting, comparing and writing do."""
    rows = piece.source.rows(seed=piece.recipe.seed)
    fitted = fit_head(rows, piece.recipe, report=report)
    record = run_record(piece.source.caches(), rows, fitted, command=piece.command)
    if piece.against:
        others = {name: read_run(folder) for name, folder in named(piece.against).items()}
        record["comparisons"] = compared(piece.folder.name, fitted.predictions, others)
    folder = write_run(
        piece.folder,
        record=record,
        predictions=fitted.predictions,
        head=fitted.head,
        head_meta=head_meta(record),
        canaries=[stored_canary(cache) for cache in piece.source.caches()],
        draw=(lambda folder: draw_choice(fitted, folder)) if find_spec("matplotlib") else None,
        numbered=piece.numbered,
    )
    return Finished(record=record, notes=fitted.selection.notes, folder=folder)


def write_curve(folder: Path, curve: dict[str, Any], law: PowerLaw | None, *, numbered: bool = False) -> Path:
    """Write ``curve.json``, and if it can be drawn ``curve.png``, to a folder as `heads.runs.write_run` does a run."""

    def write(temporary: Path) -> None:
        (temporary / "curve.json").write_text(json.dumps(curve, indent=1, allow_nan=False) + "\n")
        if find_spec("matplotlib"):
            from heads.plots import draw_learning_curve

            draw_learning_curve(
                [size["n_train"] for size in curve["sizes"]],
                [[point["test_accuracy"] for point in size["points"]] for size in curve["sizes"]],
                intervals=[tuple(size["accuracy_ci95"]) for size in curve["sizes"]],
                law=law,
                path=temporary / "curve.png",
            )

    return publish_folder(folder, write, numbered=numbered)


def draw_choice(fitted: HeadRun, folder: Path) -> None:
    """Draw the validation score by each number that there was a choice of: ``selection.png``, further ones by name."""
    from heads.plots import draw_selection

    balanced = fitted.recipe.select_by == "balanced-accuracy"
    key = "val_balanced_accuracy" if balanced else "val_accuracy"
    scored = [candidate for candidate in fitted.selection.candidates if candidate[key] is not None]
    chosen = fitted.selection.params
    (score,) = (candidate[key] for candidate in scored if candidate["params"] == chosen)
    drawn = 0
    for name in chosen:
        lines = lines_along(name, scored, key)
        if any(len(values) > 1 for _, values, _, _ in lines):
            draw_selection(
                lines,
                chosen=(chosen[name], score),
                parameter=name,
                path=folder / (f"selection-{name}.png" if drawn else "selection.png"),
                score="validation " + fitted.recipe.select_by.replace("-", " "),
            )
            drawn += 1


def lines_along(name: str, candidates: Sequence[dict[str, Any]], key: str) -> list[Line]:
    """For each choice of all else a line along one number: a label, the number's values, scores and standard errors.

    Epochs, which the search finds for each candidate, are no choice.
    """
    lines: dict[str, Line] = {}
    for candidate in candidates:
        params = {key: value for key, value in candidate["params"].items() if key != "epochs"}
        value = params.pop(name, None)
        if isinstance(value, int | float):
            label = ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in params.items())
            line = lines.setdefault(label, (label, [], [], []))
            for part, number in zip(line[1:], (value, candidate[key], candidate["val_error"]), strict=True):
                part.append(float(number))
    shared = set.intersection(*(set(label.split(", ")) for label in lines)) if len(lines) > 1 else set(lines)
    return [
        (", ".join(part for part in label.split(", ") if part not in shared) if len(lines) > 1 else "", *line[1:])
        for label, line in lines.items()
    ]
