"""A small real comparison: two heads and two fine-tunings of drawn pictures, whose classes have hostile names."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zlib import crc32

from conftest import QUICK, draw

from featcache import embed_command
from featcache.cache import Cache, find_caches
from finetune import finetune_command
from finetune.comparison.results import Cell, Comparison, Difference, TableRow, Verdict
from heads import fit_head_command
from heads.runs import read_run

#: Markup, an attribute's end, TeX, a backslash, and letters that fonts may lack.
HOSTILE = ("<img src=x onerror=alert(1)>", "\"' $\\frac{a} & 蜂 </script><script>alert(2)<!--".replace("/", "∕"))
TUNED = (["--epochs", "2"], ["--unfreeze", "layer4", "--epochs", "2"])


def compared_pictures(root: Path) -> tuple[Comparison, Cache]:
    """The comparison, with one cell that failed, and the cache that its runs come from."""
    pictures, features, runs = root / "pictures", root / "features", root / "runs"
    for split, count in (("train", 12), ("test", 10)):
        for hue, name in enumerate(HOSTILE):
            for i in range(count):
                # Some pictures of each class have the other's colour, so that there are mistakes to show.
                color = 1 - hue if i % 5 == 4 else hue
                draw(pictures / split / name / f"{i:03}.jpg", hue=color, seed=crc32(f"{split} {hue} {i}".encode()))
    places = ["--cache-dir", str(features), "--device", "cpu"]
    assert embed_command.main(["--dataset", str(pictures), *QUICK[:6], *places]) == 0
    chosen = ["--runs-dir", str(runs), "--val-fraction", "0.25", "--no-refit", *places]
    assert fit_head_command.main(["--clf", "logreg,ridge", *chosen]) == 0
    for flags in TUNED:
        assert finetune_command.main([*flags, "--batch-size", "8", *chosen]) == 0
    (cache,) = [cache for cache in find_caches(features) if not cache.is_byproduct]
    return comparison_of_runs(root, sorted(runs.iterdir())), cache


def comparison_of_runs(root: Path, runs: list[Path]) -> Comparison:
    """Finished runs as a comparison, one seed each."""
    records = {folder: read_run(folder).record for folder in runs}
    cells = [
        Cell(backbone="resnet18", method=r["method"], kind=r["kind"], seed=0, fraction=1.0, run=folder)
        for folder, r in records.items()
    ]
    failed = Cell(
        backbone="resnet18", method="full", kind="finetune", seed=0, fraction=1.0, run=None, failure="<b>no</b> memory"
    )
    rows = [_row(cell, records[cell.run]) for cell in cells if cell.run]
    rows.append(TableRow(backbone="resnet18", method="full", kind="finetune", fraction=1.0, n_seeds=0, n_failed=1))
    differences = [
        Difference(
            backbone="resnet18", method=row.method, kind=row.kind, against_backbone="resnet18", against="logreg",
            difference=row.accuracy - rows[0].accuracy, ci95=(-0.1, 0.2), n_seeds=1, mcnemar_p=0.3, p=0.3, holm_p=0.9,
            tie=True,
        )
        for row in rows[1:-1]
    ]  # fmt: skip
    some = next(iter(records.values()))
    verdict = Verdict(
        sentences=("logreg is <best>.", "Fine-tuning does not gain beyond chance."),
        best_head="logreg", best_head_backbone="resnet18", best_tuned="partial:layer4", best_tuned_backbone="resnet18",
        gain=0.05, gain_ci95=(-0.1, 0.2), gain_holm_p=0.9, beyond_chance=False, extra_minutes=0.2,
        points_per_minute=25.0, rule_of_thumb="features", follows_rule=True,
    )  # fmt: skip
    return Comparison(
        name="drawn-1", folder=root / "comparison", dataset=some["dataset"], encoders={"resnet18": some["encoder"]},
        settings={"seeds": 1, "trials": 1, "fractions": [1.0]}, cells=(*cells, failed), table=tuple(rows),
        differences=tuple(differences), verdict=verdict,
    )  # fmt: skip


def _row(cell: Cell, record: dict[str, Any]) -> TableRow:
    test, train, cost = record["metrics"]["test"], record["metrics"]["train"], record["cost"]
    return TableRow(
        backbone=cell.backbone, method=cell.method, kind=cell.kind, fraction=1.0, n_seeds=1, n_failed=0,
        n_train=record["dataset"]["n_train"], n_test=record["dataset"]["n_test"],
        trainable_params=record["trainable_params"], total_params=record["total_params"], accuracy=test["accuracy"],
        accuracy_ci95=tuple(test["accuracy_ci95"]), seed_spread=(test["accuracy"],) * 2,
        val_accuracy=record["metrics"]["val"]["accuracy"], train_accuracy=train["accuracy"],
        gap=train["accuracy"] - test["accuracy"], test_loss=test["log_loss"], embed_s=cost["embed_s"],
        fit_s=cost["fit_s"], epoch_s=cost["epoch_s"], peak_rss_mb=cost["peak_rss_mb"], disk_bytes=12345,
        notes=("<i>note</i>",) if cell.kind == "finetune" else (),
    )  # fmt: skip
