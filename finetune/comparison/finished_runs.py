"""Folders of finished runs in; the cells of a comparison of them out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featcache.common.errors import UsageError
from finetune.comparison.results import Cell
from heads.comparing import find_run
from heads.runs import read_run


def cells_of_runs(names: Sequence[Path], *, runs_dir: Path) -> list[Cell]:
    """A cell for each run; runs of one backbone and method that differ in the seed alone are seeds of one row.

    Where a backbone, method, share of the rows and seed come twice, each of these runs has a row of its own, under its
    folder's name.

    Raises:
        UsageError: fewer than two runs, or one twice.
        UserError: a folder that is no run's.
    """
    folders = [find_run(name, runs_dir) for name in names]
    if len(folders) < 2:
        raise UsageError("one run alone compares with nothing: name two or more")
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise UsageError("the same run is named twice: name each once")
    records = [read_run(folder).record for folder in folders]
    fractions = [_fraction(record) for record in records]
    backbones = [str(record["encoder"].get("backbone")) for record in records]
    methods = [str(record["method"]) for record in records]
    keys = list(zip(backbones, methods, fractions, strict=True))
    seeds = Counter((*key, record["seed"]) for key, record in zip(keys, records, strict=True))
    repeated = {key[:3] for key, count in seeds.items() if count > 1}
    cells = [
        Cell(
            backbone=key[0],
            method=f"{key[1]} ({folder.name})" if key in repeated else key[1],
            kind="head" if record["kind"] == "head" else "finetune",
            seed=int(record["seed"]),
            fraction=key[2],
            run=folder,
        )
        for folder, record, key in zip(resolved, records, keys, strict=True)
    ]
    return sorted(cells, key=lambda cell: -cell.fraction)


def _fraction(record: Mapping[str, Any]) -> float:
    """The share of the training rows that a run was told to take; 1 where it does not say."""
    chosen = record["dataset"].get("chosen")
    subset = chosen.get("subset") if isinstance(chosen, dict) else None
    fraction = subset.get("fraction") if isinstance(subset, dict) else None
    return float(fraction) if isinstance(fraction, int | float) else 1.0
