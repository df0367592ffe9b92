"""Cells in; the seeds of each backbone, method and share of the rows together, with what they had right, out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache import layout
from finetune.comparison.methods import Strategy, strategy_of
from finetune.comparison.results import Cell, Kind
from heads.comparing import is_of_best_epoch
from heads.evidence.paired import Hits
from heads.runs import read_run


@dataclass(frozen=True, eq=False, kw_only=True)
class Finished:
    """A finished run, as far as comparing goes.

    Attributes:
        folder: of the run.
        record: its ``run.json``.
        test_rows: the fingerprint of ids and labels.
        hits: bool (N,), whether each test row is right, by ascending id.
    """

    folder: Path
    record: Mapping[str, Any]
    test_rows: str
    hits: Hits

    @property
    def val_accuracy(self) -> float:
        return float(self.record["metrics"]["val"]["accuracy"])


@dataclass(frozen=True, eq=False, kw_only=True)
class Group:
    """The cells of one backbone, method and share of the training rows; ``runs`` are the finished ones, by seed."""

    backbone: str
    method: str
    kind: Kind
    fraction: float
    cells: tuple[Cell, ...]
    runs: Mapping[int, Finished]

    @property
    def val_accuracy(self) -> float:
        """What choices are made by: the mean over seeds."""
        return float(np.mean([run.val_accuracy for run in self.runs.values()]))

    @property
    def val_is_of_best_epoch(self) -> bool:
        """Whether a head's val_accuracy is that of the best epoch on the rows that chose it, and so too high."""
        return any(is_of_best_epoch(run.record) for run in self.runs.values())

    @property
    def accuracy(self) -> float:
        """On test rows, the mean over seeds."""
        return float(np.mean([run.record["metrics"]["test"]["accuracy"] for run in self.runs.values()]))

    @property
    def n_train(self) -> int:
        """Training rows; of the first seed, should they differ."""
        return int(next(iter(self.runs.values())).record["dataset"]["n_train"])

    @property
    def strategy(self) -> Strategy:
        """Features alone, a part of the backbone, or all of it, by what trained in the first seed's run."""
        record = next(iter(self.runs.values())).record
        try:
            plan = record["plan"]
            trained, stages = {stage for phase in plan["phases"] for stage in phase["stages"]}, set(plan["stages"])
        except (KeyError, TypeError):  # a head's, or one that does not tell
            return strategy_of(str(record["method"]))
        return "full" if trained == stages else "partial" if trained else "features"

    def mean_cost(self, key: str) -> float | None:
        """The mean over seeds of one of the costs that runs record, where all of them have it."""
        found = [run.record["cost"].get(key) for run in self.runs.values()]
        return None if not found or None in found else float(np.mean([float(cost) for cost in found]))

    def hits(self, seeds: Sequence[int]) -> NDArray[np.bool_]:
        """(S, N) for these seeds."""
        return np.stack([self.runs[seed].hits for seed in seeds])


def finished(folder: Path) -> Finished:
    """A run's folder, read. Raises UserError as `heads.runs.read_run` does."""
    run = read_run(folder)
    ids = run.predictions["test_ids"]
    order = np.argsort(ids, kind="stable")
    labels, scores = run.predictions["test_labels"], run.predictions["test_scores"]
    return Finished(
        folder=folder,
        record=run.record,
        test_rows=layout.fingerprint([ids[order].tolist(), labels[order].tolist()]),
        hits=(scores.argmax(axis=1) == labels)[order],
    )


def group(cells: Sequence[Cell], runs: Mapping[Path, Finished]) -> list[Group]:
    """The groups of cells, in the order in which their first cells come; ``runs`` by folder."""
    together: dict[tuple[str, str, float], list[Cell]] = {}
    for cell in cells:
        together.setdefault((cell.backbone, cell.method, cell.fraction), []).append(cell)
    return [
        Group(
            backbone=backbone,
            method=method,
            kind=own[0].kind,
            fraction=fraction,
            cells=tuple(own),
            runs={cell.seed: runs[cell.run] for cell in own if cell.run is not None},
        )
        for (backbone, method, fraction), own in together.items()
    ]


def shared_test_rows(groups: Sequence[Group]) -> str | None:
    """The fingerprint of the test rows that most runs have, of equals the first; None without runs."""
    seen = [run.test_rows for each in groups for run in each.runs.values()]
    return max(dict.fromkeys(seen), key=seen.count) if seen else None


def comparable(each: Group, test_rows: str | None) -> bool:
    """Whether all its runs have these test rows."""
    return bool(each.runs) and all(run.test_rows == test_rows for run in each.runs.values())


def common_seeds(one: Group, other: Group) -> list[int]:
    """The seeds that both have."""
    return [seed for seed in one.runs if seed in other.runs]
