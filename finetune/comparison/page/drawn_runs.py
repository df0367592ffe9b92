"""Cells of a comparison in; what the runs of those that finished recorded, checked as far as pictures need it, out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featcache.common.errors import UserError
from finetune.comparison.page.points import named
from finetune.comparison.results import Cell, Comparison
from heads.runs import Run, read_run

_NUMBER = (int, float)
_MEASURES = ("train_loss", "train_accuracy", "val_accuracy", "test_accuracy")


@dataclass(frozen=True, eq=False, kw_only=True)
class Best:
    """The first seed's run of the head or fine-tuning that the verdict is about, and its name."""

    name: str
    run: Run


@dataclass(frozen=True, eq=False, kw_only=True)
class FinishedRuns:
    """What was read.

    Attributes:
        fraction: the share of the training rows that is compared.
        records: ``run.json`` of each cell that has one, in the order of the cells.
        head, tuned: the best of each kind, with predictions; None where there is none.
        unread: runs that can't be read or drawn, and why.
    """

    fraction: float
    records: tuple[tuple[Cell, Mapping[str, Any]], ...]
    head: Best | None
    tuned: Best | None
    unread: tuple[tuple[str, str], ...]

    def tuned_records(self, backbone: str) -> dict[str, list[Mapping[str, Any]]]:
        """Those of fine-tuning on the share of the rows that is compared, by method, for each seed one."""
        found: dict[str, list[Mapping[str, Any]]] = {}
        for cell, record in self.records:
            if cell.kind == "finetune" and cell.backbone == backbone and cell.fraction == self.fraction:
                found.setdefault(cell.method, []).append(record)
        return found


def read_finished(comparison: Comparison) -> FinishedRuns:
    """Read the runs; predictions are kept of the two best alone, since those of all may not fit in memory."""
    verdict = comparison.verdict
    several = len({row.backbone for row in comparison.table}) > 1
    sought = {
        "head": (verdict.best_head_backbone, verdict.best_head),
        "tuned": (verdict.best_tuned_backbone, verdict.best_tuned),
    }
    fraction = comparison.compared_fraction
    records, unread, best = [], [], {}
    for cell in comparison.cells:
        if cell.run is None:
            continue
        try:
            run = read_run(cell.run)
        except UserError as error:
            unread.append((cell.method, str(error)))
            continue
        if fault := _fault(run.record):
            unread.append((cell.method, f"{cell.run}: run.json: {fault}"))
            continue
        records.append((cell, run.record))
        for kind, key in sought.items():
            if key == (cell.backbone, cell.method) and cell.fraction == fraction and kind not in best:
                best[kind] = Best(name=named(cell.backbone, cell.method, several=several), run=run)
    tuned = [cell for cell, _ in records if cell.kind == "finetune"]
    drawn = {(cell.backbone, cell.method) for cell in tuned if cell.fraction == fraction}
    lacking = dict.fromkeys((each.backbone, each.method) for each in tuned if (each.backbone, each.method) not in drawn)
    why = f"its training: it has no run on {100 * fraction:g} % of the training images, which is what is compared"
    unread += [(named(*key, several=several), why) for key in lacking]
    return FinishedRuns(
        fraction=fraction,
        records=tuple(records),
        head=best.get("head"),
        tuned=best.get("tuned"),
        unread=tuple(unread),
    )


def _fault(record: Mapping[str, Any]) -> str:
    """What is not as pictures take it; `heads.runs.read_run` has looked at the rest."""
    selection, range_test = record["selection"], record.get("range_test")
    if record["kind"] == "finetune" and not all(_is_epoch(entry) for entry in record["history"]):
        return "an entry of history has no epoch, phase or numbers"
    if not isinstance(selection.get("how"), str):
        return "selection.how is no text"
    for key, needs_error in (("candidates", record["kind"] == "head"), ("trials", False)):
        each = selection.get(key, [])
        if not isinstance(each, list) or not all(_is_candidate(one, needs_error) for one in each):
            return f"selection.{key} is no list of candidates with params and scores"
    if range_test is not None and not _is_range_test(range_test):
        return "range_test has no rates with losses"
    cache = record.get("cache", {})
    if not isinstance(cache, dict) or not all(isinstance(cache.get(key, ""), str) for key in ("file", "fingerprint")):
        return "cache names no file and fingerprint"
    return ""


def _is_epoch(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and type(entry.get("epoch")) is int
        and isinstance(entry.get("phase"), str)
        and all(entry.get(measure) is None or type(entry[measure]) in _NUMBER for measure in _MEASURES)
    )


def _is_candidate(each: Any, needs_error: bool) -> bool:
    return (
        isinstance(each, dict)
        and isinstance(each.get("params"), dict)
        and all(
            each.get(key) is None or type(each[key]) in _NUMBER for key in ("val_accuracy", "val_balanced_accuracy")
        )
        and (not needs_error or each.get("val_accuracy") is None or type(each.get("val_error")) in _NUMBER)
    )


def _is_range_test(told: Any) -> bool:
    if not isinstance(told, dict):
        return False
    lists = [told.get(key) for key in ("rates", "losses", "smoothed")]
    return (
        all(isinstance(each, list) and each and all(type(one) in _NUMBER for one in each) for each in lists)
        and len({len(each) for each in lists if each}) == 1
        and type(told.get("suggested")) in _NUMBER
    )


def tried_rates(record: Mapping[str, Any]) -> Sequence[tuple[float, float]]:
    """The head's learning rates that a fine-tuning tried, and the validation accuracy of each that ended well."""
    trials = record["selection"].get("trials", [])
    return [
        (each["params"]["lr"], each["val_accuracy"])
        for each in trials
        if each["val_accuracy"] is not None and type(each["params"].get("lr")) in _NUMBER
    ]
