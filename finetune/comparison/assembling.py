"""Cells in, finished or failed; the comparison that they come to out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from featcache.common.errors import UserError
from featcache.common.files import one_line
from finetune.comparison.differences import differences_of
from finetune.comparison.groups import Finished, finished, group
from finetune.comparison.results import Cell, Comparison
from finetune.comparison.table import table_rows
from finetune.comparison.verdict import verdict_of


def assemble(
    cells: Sequence[Cell], *, name: str, folder: Path, cache_dir: Path, settings: Mapping[str, Any]
) -> Comparison:
    """Read the cells' runs, and draw table, differences and verdict from them.

    A run that can't be read makes a failed cell.

    Args:
        cells: the largest share of the rows first.
        name, folder, settings: as in `Comparison`.
        cache_dir: where the caches are that the runs were made from.

    Raises:
        UserError: no cell has a run.
    """
    runs: dict[Path, Finished] = {}
    read = []
    for cell in cells:
        if cell.run is not None and cell.run not in runs:
            try:
                runs[cell.run] = finished(cell.run)
            except UserError as error:
                cell = replace(cell, run=None, failure=one_line(error))
        read.append(cell)
    if not runs:
        reasons = dict.fromkeys(cell.failure for cell in read)
        raise UserError(f"no cell has a finished run: {'; '.join(str(reason) for reason in list(reasons)[:3])}")
    groups = group(read, runs)
    differences = differences_of(groups)
    records = [runs[cell.run].record for cell in read if cell.run is not None]
    return Comparison(
        name=name,
        folder=folder,
        dataset=records[0]["dataset"],
        encoders={record["encoder"]["backbone"]: record["encoder"] for record in reversed(records)},
        settings=settings,
        cells=tuple(read),
        table=table_rows(groups, cache_dir=cache_dir),
        differences=differences,
        verdict=verdict_of(groups, differences),
    )
