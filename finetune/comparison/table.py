"""Groups of finished cells in; the rows of the table, with marks on what does not compare, out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featcache.common.hashing import canonical_json
from finetune.comparison.differences import not_compared, reference_of
from finetune.comparison.groups import Finished, Group, at_largest_common_fraction, common_seeds, comparable
from finetune.comparison.results import TableRow
from heads.evidence.metrics import wilson


def table_rows(groups: Sequence[Group], *, cache_dir: Path) -> tuple[TableRow, ...]:
    """A row for each group, in order.

    Args:
        groups: the largest share of the rows first.
        cache_dir: where caches lie, whose files are counted as far as they are there.
    """
    usual, alike = _Usual.of(groups), comparable(groups)
    rows_notes = {each: f"{reason}: in no difference" for each, reason in not_compared(groups).items()} | _few_seeds(
        groups
    )
    return tuple(_row(each, usual, each in alike, rows_notes.get(each), cache_dir) for each in groups)


def _few_seeds(groups: Sequence[Group]) -> dict[Group, str]:
    """A note on each group whose difference is over fewer seeds than it or the reference has."""
    reference, notes = reference_of(groups), {}
    if reference is None:
        return {}
    for each in at_largest_common_fraction(groups):
        seeds = common_seeds(each, reference)
        if 0 < len(seeds) < max(len(each.runs), len(reference.runs)):
            which = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
            notes[each] = f"compared over {which} alone"
    return notes


class _Usual:
    """What most comparable runs have, which others are marked against; ``preprocessing`` is by backbone."""

    def __init__(self) -> None:
        self.preprocessing: dict[str, str] = {}
        self.augment = "none"

    @classmethod
    def of(cls, groups: Sequence[Group]) -> _Usual:
        usual = cls()
        augments: Counter[str] = Counter()
        preprocessing: dict[str, Counter[str]] = {}
        for each in comparable(groups):
            for run in each.runs.values():
                preprocessing.setdefault(each.backbone, Counter())[_preprocessing(run.record)] += 1
                augments[run.record["augment"]] += 1
        usual.preprocessing = {key: counts.most_common(1)[0][0] for key, counts in preprocessing.items()}
        usual.augment = "none" if augments["none"] or not augments else augments.most_common(1)[0][0]
        return usual


def _row(each: Group, usual: _Usual, is_comparable: bool, rows_note: str | None, cache_dir: Path) -> TableRow:
    failed = [cell for cell in each.cells if cell.failure is not None]
    notes = list(_failures(each))
    shared: dict[str, Any] = {
        "backbone": each.backbone,
        "method": each.method,
        "kind": each.kind,
        "fraction": each.fraction,
        "n_seeds": len(each.runs),
        "n_failed": len(failed),
    }
    if not each.runs:
        return TableRow(**shared, notes=tuple(notes), comparable=False)
    runs = list(each.runs.values())
    first = runs[0].record
    notes += [] if rows_note is None else [rows_note]
    notes += _marks(each, usual)
    accuracies = [run.record["metrics"]["test"]["accuracy"] for run in runs]
    losses = [run.record["metrics"]["test"]["log_loss"] for run in runs]
    accuracy, n_test = float(np.mean(accuracies)), first["dataset"]["n_test"]
    train = float(np.mean([run.record["metrics"]["train"]["accuracy"] for run in runs]))
    return TableRow(
        **shared,
        n_train=each.n_train,
        n_test=n_test,
        trainable_params=first["trainable_params"],
        total_params=first["total_params"],
        accuracy=accuracy,
        accuracy_ci95=wilson(round(accuracy * n_test), n_test),
        seed_spread=(min(accuracies), max(accuracies)),
        val_accuracy=each.val_accuracy,
        train_accuracy=train,
        gap=train - accuracy,
        test_loss=None if None in losses else float(np.mean(losses)),
        embed_s=each.mean_cost("embed_s"),
        fit_s=each.mean_cost("fit_s"),
        epoch_s=each.mean_cost("epoch_s"),
        peak_rss_mb=max(float(run.record["cost"]["peak_rss_mb"]) for run in runs),
        disk_bytes=_disk_bytes(runs[0], cache_dir),
        params=first["params"],
        notes=tuple(notes),
        comparable=is_comparable,
    )


def _failures(each: Group) -> Iterator[str]:
    """Why seeds are missing, once for all of them that have one reason."""
    reasons: dict[str, list[int]] = {}
    for cell in each.cells:
        if cell.failure is not None:
            reasons.setdefault(cell.failure, []).append(cell.seed)
    for reason, seeds in reasons.items():
        which = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
        yield reason if len(seeds) == len(each.cells) else f"{which}: {reason}"


def _marks(each: Group, usual: _Usual) -> Iterator[str]:
    if each.kind == "head" and each.val_is_of_best_epoch:
        yield "validation accuracy is its best epoch's: never the reference"
    records = [run.record for run in each.runs.values()]
    sizes = [record["encoder"].get("preprocessing", {}).get("image_size") for record in records]
    if any(_preprocessing(r) != usual.preprocessing.get(each.backbone, _preprocessing(r)) for r in records):
        yield f"other preprocessing{f' ({sizes[0]} px)' if sizes[0] else ''}"
    augments = {str(record["augment"]) for record in records}
    if augments != {usual.augment}:
        yield f"augmented: {', '.join(sorted(augments))}" if augments != {"none"} else "not augmented"


def _preprocessing(record: Mapping[str, Any]) -> str:
    return canonical_json(record["encoder"].get("preprocessing"))


def _disk_bytes(run: Finished, cache_dir: Path) -> int:
    """The model's file, and the cache of features or maps that it takes to fit it."""
    total = sum(
        (run.folder / name).stat().st_size for name in ("head.npz", "model.pth") if (run.folder / name).exists()
    )
    caches = [run.record.get("trunk_cache"), run.record.get("cache") if _uses_features(run.record) else None]
    names = {cache["file"] for cache in caches if isinstance(cache, dict) and isinstance(cache.get("file"), str)}
    for name in names:
        path = cache_dir / Path(name).name
        total += path.stat().st_size if path.is_file() else 0
    return total


def _uses_features(record: Mapping[str, Any]) -> bool:
    """Whether it is fitted on the features of a cache, or begins with a head that is."""
    return record["kind"] == "head" or record["method"] == "lp-ft"
