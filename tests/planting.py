"""A copy of a folder of photographs with known faults: wrong labels, exact copies and resaved copies across splits."""

from __future__ import annotations

import csv
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

#: JPEG qualities of the resaved copies, in turn.
QUALITIES = (95, 90, 85, 75, 65, 50, 40, 30)


@dataclass(frozen=True)
class Planted:
    """Ids of rows with a wrong label, and pairs of ids of a training image and its copy in the other split."""

    wrong: frozenset[str]
    exact: frozenset[frozenset[str]]
    resaved: frozenset[frozenset[str]]


def plant(
    source: Path,
    root: Path,
    *,
    test: str,
    per_class: dict[str, int] | None = None,
    wrong: int = 12,
    exact: int = 8,
    resaved: int = 8,
    seed: int = 0,
) -> Planted:
    """Copy ``source/{train,<test>}/<class>/*`` of two classes to ``root`` and plant faults there.

    ``per_class`` copies so many images of each class only, by split.
    """
    for folder in sorted(each for split in ("train", test) for each in (source / split).iterdir() if each.is_dir()):
        (root / folder.relative_to(source)).mkdir(parents=True)
        kept = sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".png"))
        for path in kept[: per_class[folder.parent.name] if per_class else None]:
            shutil.copy(path, root / path.relative_to(source))
    images = [path for split in ("train", test) for path in sorted((root / split).rglob("*.*"))]
    order = [images[i] for i in np.random.default_rng(seed).permutation(len(images))]
    first, second = sorted(folder.name for folder in (root / "train").iterdir() if folder.is_dir())
    training = [path for path in order[wrong:] if path.is_relative_to(root / "train")]
    copied, saved = [], []
    for i, path in enumerate(training[: exact + resaved]):
        to = root / test / path.parent.name / f"copy-{i}{path.suffix if i < exact else '.jpg'}"
        if i < exact:
            shutil.copy(path, to)
        else:
            Image.open(path).convert("RGB").save(to, quality=QUALITIES[(i - exact) % len(QUALITIES)])
        (copied if i < exact else saved).append(frozenset({_id(root, path), _id(root, to)}))
    flipped = []
    for path in order[:wrong]:
        to = path.parent.parent / (second if path.parent.name == first else first) / path.name
        assert not to.exists()
        flipped.append(_id(root, path.rename(to)))
    return Planted(frozenset(flipped), frozenset(copied), frozenset(saved))


def found_in(findings: Path) -> tuple[set[str], set[frozenset[str]], set[frozenset[str]]]:
    """The ids of likely wrong labels, and the pairs of exact and of near duplicates, that an audit lists."""
    with findings.open(newline="") as file:
        rows = list(csv.DictReader(file))
    pairs = {
        kind: {frozenset({row["id"], row["other_id"]}) for row in rows if row["kind"] == kind}
        for kind in ("exact-duplicate", "near-duplicate")
    }
    return (
        {row["id"] for row in rows if row["kind"] == "wrong-label"},
        pairs["exact-duplicate"],
        pairs["near-duplicate"],
    )


def _id(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
