"""Finished runs in; which of them are better than which on the same test rows, as JSON for ``run.json``, out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from featcache.common.errors import UserError
from heads.evidence.paired import Comparison, Verdict, compare_runs
from heads.runs import Run

_OPPOSITE: Mapping[Verdict, Verdict] = {"better": "worse", "worse": "better"}


def find_run(name: Path, runs_dir: Path) -> Path:
    """A run's folder by its path, or by its name in the folder of the runs."""
    return name if (name / "run.json").exists() or not (runs_dir / name / "run.json").exists() else runs_dir / name


def named(folders: Sequence[Path]) -> dict[str, Path]:
    """Folders of runs by name, or by path where two have the same name."""
    names = [folder.name for folder in folders]
    return {str(folder) if names.count(folder.name) > 1 else folder.name: folder for folder in folders}


def compared(name: str, predictions: Mapping[str, NDArray[Any]], others: Mapping[str, Run]) -> list[dict[str, Any]]:
    """A run against each of others on the same test rows: the difference is its accuracy minus theirs.

    The p-values are McNemar's, adjusted by Holm for the number of others. Raises UserError where the rows differ.
    """
    new = name if name not in others else f"{name} (new)"
    told = []
    for each in compare_runs(
        {new: predictions, **{key: run.predictions for key, run in others.items()}}, reference=new
    ):
        method = others[each.name].record["method"]
        told.append(
            {
                "run": each.name,
                "method": method,
                "difference": 0.0 - each.difference,
                "ci95": [0.0 - each.ci95[1], 0.0 - each.ci95[0]],
                "p_value": each.p_value,
                "p_holm": each.p_holm,
                "verdict": _OPPOSITE.get(each.verdict, each.verdict),
            }
        )
    return told


def check_same_rows(ids: Sequence[str], others: Mapping[Path, Run]) -> None:
    """Refuse, before anything is fitted, to compare with runs on other test rows. Raises UserError."""
    for folder, run in others.items():
        theirs = run.predictions["test_ids"].tolist()
        if set(theirs) != set(ids):
            unlike = len(set(theirs) ^ set(ids))
            raise UserError(
                f"--against {folder}: it was scored on other test rows ({len(theirs):,} and {len(ids):,}, {unlike:,} "
                "ids are in one only): compare runs of one data set, subset and seed"
            )


def is_of_best_epoch(record: Mapping[str, Any]) -> bool:
    """Whether a head's validation accuracy is that of its best epoch on the rows that chose it, and so too high."""
    return bool(record["selection"].get("val_is_of_best_epoch", "epochs" in record["params"]))


def reference_of(records: Mapping[str, Mapping[str, Any]]) -> tuple[str, str] | None:
    """The name of the head that others are compared with, the first of equals, and what it has the highest of.

    That is nested accuracy if all of them have it, else validation accuracy. A head whose validation accuracy is that
    of its best epoch is never the reference, since on pure noise it wins over the others; None if all are such.
    """
    nested = {name: record["selection"].get("nested") for name, record in records.items()}
    if all(nested.values()):
        return max(records, key=lambda name: nested[name]["accuracy"]), "nested accuracy"
    fair = [name for name, record in records.items() if not is_of_best_epoch(record)]
    if not fair:
        return None
    best = max(fair, key=lambda name: records[name]["metrics"]["val"]["accuracy"])
    return best, "validation accuracy" + ("" if len(fair) == len(records) else ", those of a best epoch aside")


def against_best(runs: Mapping[str, Run]) -> list[dict[str, Any]]:
    """Each run against the one that `reference_of` names; runs by name. Nothing if it names none."""
    reference = reference_of({name: run.record for name, run in runs.items()})
    if reference is None:
        return []
    best, highest = reference
    predictions = {name: run.predictions for name, run in runs.items()}
    methods = {name: run.record["method"] for name, run in runs.items()}
    return [
        {**_told(each, methods), "reference_has_highest": highest} for each in compare_runs(predictions, reference=best)
    ]


def _told(each: Comparison, methods: Mapping[str, str]) -> dict[str, Any]:
    return {
        "run": each.name,
        "method": methods[each.name],
        "reference": each.reference,
        "reference_method": methods[each.reference],
        "difference": each.difference,
        "ci95": list(each.ci95),
        "p_value": each.p_value,
        "p_holm": each.p_holm,
        "verdict": each.verdict,
    }
