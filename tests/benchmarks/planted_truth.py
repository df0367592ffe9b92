"""Does bin/compare tell the truth where it is known? Sets of drawn images, real heads and real fine-tuning.

Three kinds of set. Where labels are random, and where they are linear in the backbone's features, fine-tuning cannot
help, and the verdict is not to claim a gain. Where they depend on faint stripes that the features hardly keep, it can:
the verdict is to claim one.

    python tests/benchmarks/planted_truth.py [--sets 3] [--images 1200] [--epochs 8] [--work FOLDER]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from featcache.models.backbones import load_backbone
from finetune.comparison import compare_command

SIDE = 32
BACKBONE = ("--backbone", "resnet18", "--weights", "none", "--image-size", str(SIDE))
Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]


def scenes(rng: np.random.Generator, n: int) -> Pixels:
    """Blurred noise of random contrast and colour: (n, S, S, 3)."""
    coarse = torch.from_numpy(rng.normal(size=(n, 3, 5, 5)))
    smooth = torch.nn.functional.interpolate(coarse, size=SIDE, mode="bicubic").permute(0, 2, 3, 1).numpy()
    fine = rng.normal(size=(n, SIDE, SIDE, 3))
    return np.clip(128 + 40 * smooth + 12 * fine, 0, 255).astype(np.uint8)


def at_random(rng: np.random.Generator, images: Pixels) -> tuple[Pixels, Labels]:
    return images, rng.integers(0, 2, len(images))


def linear_in_features(rng: np.random.Generator, images: Pixels) -> tuple[Pixels, Labels]:
    """By which side of a random plane through the standardised features an image lies, 8 % of the labels turned."""
    backbone = load_backbone("resnet18", weights="none", image_size=SIDE)
    staged = backbone.staged
    with torch.no_grad():
        inputs = backbone.preprocessing.normalise(torch.from_numpy(images).permute(0, 3, 1, 2))
        features = staged.trunk()(inputs).numpy()
    spread = features.std(axis=0)
    kept = (features - features.mean(axis=0))[:, spread > 0] / spread[spread > 0]
    # along the leading directions, where a head can find it from so many rows
    _, _, directions = np.linalg.svd(kept, full_matrices=False)
    score = kept @ directions[:8].T @ rng.normal(size=8)
    labels = (score > np.median(score)).astype(np.int64)
    return images, np.where(rng.random(len(labels)) < 0.08, 1 - labels, labels)


def by_faint_stripes(rng: np.random.Generator, images: Pixels) -> tuple[Pixels, Labels]:
    """Stripes of one pixel, upright or lying, at a twentieth of the contrast of the scene."""
    labels = rng.integers(0, 2, len(images))
    line = np.where(np.arange(SIDE) % 2, 5, -5)
    upright = np.broadcast_to(line[None, :], (SIDE, SIDE))
    stripes = np.where(labels[:, None, None] == 1, upright, upright.T)
    return np.clip(images + stripes[..., None], 0, 255).astype(np.uint8), labels


KINDS: dict[str, Callable[[np.random.Generator, Pixels], tuple[Pixels, Labels]]] = {
    "labels at random": at_random,
    "linear in the features": linear_in_features,
    "faint stripes": by_faint_stripes,
}


def write(root: Path, images: Pixels, labels: Labels) -> Path:
    """As a folder of pictures, a third of them to test on."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / ("test" if number % 3 == 0 else "train") / "ab"[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    return root


def verdict(work: Path, root: Path, *flags: str) -> dict[str, object]:
    """Of bin/compare on a folder."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()) as said:
        status = compare_command.main([
            "--dataset", str(root), *BACKBONE, "--methods", "logreg,knn,full,scratch", "--device", "cpu", "--json",
            "--cache-dir", str(work / "features"), "--runs-dir", str(work / "runs"), *flags,
        ])  # fmt: skip
    if status:
        raise SystemExit(said.getvalue())
    told = json.loads(out.getvalue())
    accuracies = {row["method"]: row["accuracy"] for row in told["table"]}
    return {**told["verdict"], "accuracies": accuracies}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sets", type=int, default=3, help="of each kind (3)")
    parser.add_argument("--images", type=int, default=1200, help="in each set (1200)")
    parser.add_argument("--epochs", type=int, default=8, help="of fine-tuning (8)")
    parser.add_argument("--kinds", default=",".join(KINDS), help="which")
    parser.add_argument("--work", type=Path, help="folder to keep the work in (a temporary one)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        for kind in arguments.kinds.split(","):
            claimed = 0
            for number in range(arguments.sets):
                began = time.perf_counter()
                rng = np.random.default_rng([number, list(KINDS).index(kind)])
                images, labels = KINDS[kind](rng, scenes(rng, arguments.images))
                root = write(work / f"{kind.replace(' ', '_')}-{number}", images, labels)
                told = verdict(work, root, "--epochs", str(arguments.epochs), "--seeds", "1", "--trials", "2")
                claimed += bool(told["beyond_chance"])
                gain, low_high = told["gain"], told["gain_ci95"]
                print(f"{kind}, set {number}: gain {gain:+.3f} {low_high}, Holm's p {told['gain_holm_p']:.2g}; "
                      f"{told['accuracies']}; {time.perf_counter() - began:.0f} s", flush=True)  # fmt: skip
            print(f"{kind}: a gain claimed in {claimed} of {arguments.sets} sets", flush=True)


if __name__ == "__main__":
    main()
