"""Cells in; the seeds of each backbone, method and share of the rows together, with what they had right, out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from featcache.common import hashing
from finetune.comparison.methods import Strategy, strategy_of
from finetune.comparison.results import Cell, Kind, largest_common_fraction
from heads.comparing import is_of_best_epoch
from heads.evidence.paired import Hits
from heads.runs import read_run

_Rows = TypeVar("_Rows")


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

    @property
    def fitted_rows(self) -> tuple[str, bool]:
        """The fingerprint of its training and validation rows, and whether the final model was fitted on both."""
        return str(self.record["dataset"]["fingerprint"]), bool(self.record["selection"].get("refit"))


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
        test_rows=hashing.fingerprint([ids[order].tolist(), labels[order].tolist()]),
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


@dataclass(frozen=True, kw_only=True)
class UsualRows:
    """The rows that most runs have, of those that both heads and fine-tuning have; else of those that heads have.

    Attributes:
        test: the fingerprint of the test rows; None without runs.
        fitted: by seed and share of the training rows, as in `Finished.fitted_rows`.
    """

    test: str | None
    fitted: Mapping[tuple[int, float], tuple[str, bool]]

    @classmethod
    def of(cls, groups: Sequence[Group]) -> UsualRows:
        """Those of all groups' runs."""
        tested = [(each.kind, run.test_rows) for each in groups for run in each.runs.values()]
        test = _most_common(tested) if tested else None
        fitted: dict[tuple[int, float], list[tuple[Kind, tuple[str, bool]]]] = {}
        for each in groups:
            if all(run.test_rows == test for run in each.runs.values()):
                for seed, run in each.runs.items():
                    fitted.setdefault((seed, each.fraction), []).append((each.kind, run.fitted_rows))
        return cls(test=test, fitted={key: _most_common(rows) for key, rows in fitted.items()})

    def deviation(self, each: Group) -> str:
        """Which rows of a group are not these, as a note says it; "" where all are."""
        if any(run.test_rows != self.test for run in each.runs.values()):
            return "other test rows"
        usual = [(run.fitted_rows, self.fitted[seed, each.fraction]) for seed, run in each.runs.items()]
        if any(own[0] != others[0] for own, others in usual):
            return "other training or validation rows"
        if any(own != others for own, others in usual):
            refitted = any(own[1] for own, _ in usual)
            return "refitted on validation rows, too" if refitted else "not refitted on validation rows"
        return ""


def comparable(groups: Sequence[Group]) -> list[Group]:
    """The groups with runs whose rows are those of the others of their share of the rows."""
    usual = UsualRows.of(groups)
    return [each for each in groups if each.runs and not usual.deviation(each)]


def at_largest_common_fraction(groups: Sequence[Group]) -> list[Group]:
    """The groups that differences and verdict are of: the comparable ones of one share of the training rows.

    See `finetune.comparison.results.largest_common_fraction` for which.
    """
    alike = comparable(groups)
    fraction = largest_common_fraction((each.kind, each.fraction) for each in alike)
    return [each for each in alike if each.fraction == fraction]


def common_seeds(one: Group, other: Group) -> list[int]:
    """The seeds that both have."""
    return [seed for seed in one.runs if seed in other.runs]


def _most_common(rows: Iterable[tuple[Kind, _Rows]]) -> _Rows:
    """The rows that most have, of equals the first; those of both kinds go first, then those of heads."""
    counts: Counter[_Rows] = Counter()
    kinds: dict[_Rows, set[Kind]] = {}
    for kind, each in rows:
        counts[each] += 1
        kinds.setdefault(each, set()).add(kind)
    return max(counts, key=lambda each: (len(kinds[each]), "head" in kinds[each], counts[each]))
