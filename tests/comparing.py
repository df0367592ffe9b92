"""A small real comparison: two heads and two fine-tunings of drawn pictures, whose classes have hostile names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from zlib import crc32

from conftest import QUICK, draw

from featcache.commands import embed as embed_command
from finetune import finetune_command
from finetune.comparison.assembling import assemble
from finetune.comparison.finished_runs import cells_of_runs
from finetune.comparison.results import Comparison
from heads import fit_head_command

#: Markup, an attribute's end, TeX, a backslash, and letters that fonts may lack.
HOSTILE = ("<img src=x onerror=alert(1)>", "\"' $\\frac{a} & 蜂 <script>alert(2)<!--")
TUNED = (["--epochs", "2"], ["--unfreeze", "layer4", "--epochs", "2"])


def compared_pictures(root: Path) -> Comparison:
    """The comparison, with one cell that failed; its caches are in ``root/features``."""
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
        assert finetune_command.main([*flags, "--batch-size", "8", "--trunk-cache", "off", *chosen]) == 0
    cells = cells_of_runs(sorted(runs.iterdir()), runs_dir=runs)
    failed = replace(cells[0], method="full", kind="finetune", run=None, failure="<b>no</b> memory")
    return assemble(
        [*cells, failed], name="drawn-1", folder=root / "comparison", cache_dir=features, settings={"trials": [1]}
    )
