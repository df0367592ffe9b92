"""Runs to predict by, of every kind, on pictures that no head is sure of; and what their predictions say."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from featcache.commands import embed as embed_command
from finetune import finetune_command
from heads import fit_head_command


class Served(NamedTuple):
    """Pictures, and the folders with caches and runs on them."""

    pictures: Path
    cache_dir: Path
    runs_dir: Path


def make_runs(root: Path, draw: Callable[..., None]) -> Served:
    """Four caches of two classes of pictures that nobody can tell apart, and runs on them."""
    served = Served(root / "pictures", root / "features", root / "runs")
    for split, count in (("train", 12), ("test", 7)):
        for label, name in enumerate(("red", "green")):  # of one hue, so that no head is too sure to be compared
            for i in range(count):
                path = served.pictures / split / name / f"{i}.png"
                draw(path, hue=0, seed=1000 * len(split) + 100 * label + i, size=(24, 20))
    places = [f"--cache-dir={served.cache_dir}", f"--runs-dir={served.runs_dir}", "--seed=0"]
    model = ["--backbone=timm/test_resnet", "--weights=none", "--image-size=32", "--precision=fp32", "--device=cpu"]
    embed = ["--dataset", str(served.pictures), *places[:1], *model, "--batch-size=8", "--json"]

    def cached(*flags: str) -> str:
        assert embed_command.main([*embed, *flags]) == 0
        return max(served.cache_dir.glob("*.h5"), key=lambda path: path.stat().st_mtime_ns).name

    def fitted(name: str, *flags: str) -> None:
        assert fit_head_command.main([*places, "--name", name, "--val-fraction=0.25", "--json", *flags]) == 0

    maps, views = cached("--cut=layer3"), cached("--views=2")
    other, plain = cached("--seed=1", "--storage=float32"), cached()
    caches = [f"--cache={served.cache_dir / name}" for name in (plain, other)]
    fitted("head", "--clf=logreg", caches[0])
    fitted("scores", "--clf=ridge", caches[0])
    fitted("near", "--clf=knn", caches[0])
    fitted("joined", "--clf=ridge", "--calibrate", *caches)
    fitted("views", "--clf=logreg", f"--cache={served.cache_dir / views}")
    fitted("plain", "--clf=logreg", "--views=plain", f"--cache={served.cache_dir / views}")
    fitted("maps", "--clf=logreg", "--pool", f"--cache={served.cache_dir / maps}")
    tune = ["--name=tuned", f"--cache={served.cache_dir / plain}", "--epochs=1", "--no-refit", "--trunk-cache=off"]
    assert finetune_command.main([*places, *tune, "--unfreeze=layer4", "--device=cpu", "--json"]) == 0
    return served


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def edited(served: Served, tmp_path: Path, name: str, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a run with another run.json."""
    copy = tmp_path / f"{name}-edited"
    shutil.copytree(served.runs_dir / name, copy)
    record = json.loads((copy / "run.json").read_text())
    change(record)
    (copy / "run.json").write_text(json.dumps(record))
    return copy
