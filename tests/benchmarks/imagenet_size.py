"""Heads on as many rows as ImageNet has, 1,281,167 x 512 in 1,000 classes, streamed from a file: seconds, peak memory.

    python tests/benchmarks/imagenet_size.py ridge|lda|logreg [--rows 1281167] [--C 1e-3 ...] [--tol 1e-3]
        [--passes 40] [--device cuda]

The features are drawn (seeded), with a spectrum that falls as 1 / rank and classes that overlap, and lie in a file of
float16, as in a cache. ridge and lda are whole searches with a validation split and the refit; logreg is a path of
ascending Cs (one by default), each from where the one before ended, whose gaps are told where it stops.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache.tables.subset import carve
from heads.classifiers import CLASSIFIERS
from heads.features import Features
from heads.fitting import Folds
from heads.folds import validation
from heads.recipe import Recipe
from heads.selection import select
from heads.softmax_objective import SoftmaxObjective
from heads.softmax_path import softmax_path
from heads.standardization import Floats, Labels


@dataclass(frozen=True, eq=False)
class FileOfRows(Features):
    """Rows of float16 in a file, or some of them."""

    path: Path
    columns: int
    rows: Labels

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), self.columns

    def take(self, rows: Labels) -> FileOfRows:
        return FileOfRows(self.path, self.columns, self.rows[rows])

    def block(self, start: int, stop: int) -> Floats:
        wanted = self.rows[start:stop]
        out = np.empty((len(wanted), self.columns), np.float32)
        runs = np.flatnonzero(np.diff(wanted, prepend=-2) != 1)
        with self.path.open("rb") as file:
            for first, last in zip(runs, [*runs[1:], len(wanted)], strict=True):
                file.seek(int(wanted[first]) * self.columns * 2)
                values = np.fromfile(file, np.float16, (last - first) * self.columns)
                out[first:last] = values.reshape(-1, self.columns)
        return out


def write(path: Path, rows: int, columns: int, classes: int) -> Labels:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, rows)
    spread = (np.arange(1, columns + 1) ** -0.5).astype(np.float32)
    rotation = np.linalg.qr(rng.standard_normal((columns, columns)))[0].astype(np.float32)
    turned, means = spread[:, None] * rotation, 1.5 * rng.standard_normal((classes, columns)).astype(np.float32)
    with path.open("wb") as file:
        for start in range(0, rows, 8192):
            own = labels[start : start + 8192]
            latent = rng.standard_normal((len(own), columns), dtype=np.float32) + means[own]
            np.maximum(latent @ turned + 0.1, 0).astype(np.float16).tofile(file)
    return labels


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("clf", choices=["ridge", "lda", "logreg"])
    parser.add_argument("--rows", type=int, default=1_281_167)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--C", type=float, nargs="+", default=[1e-3])
    parser.add_argument("--tol", type=float, default=1e-3)
    parser.add_argument("--passes", type=int, default=40, help="for each C")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        y = write(path, args.rows, args.columns, args.classes)
        X = FileOfRows(path, args.columns, np.arange(args.rows))
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        if args.clf == "logreg":
            whole = np.arange(args.rows)
            folds = Folds(X=X, y=y, n_classes=args.classes, train=(whole,), val=(whole[:1],), device=args.device)
            mean, scale = folds.task(whole).statistics
            objective = SoftmaxObjective(
                X=X,
                codes=y,
                weights=np.ones((len(y), 1)),
                n_classes=args.classes,
                mean=mean,
                scale=scale,
                device=args.device,
            )
            said = f"{len(args.C)} values of C"
            for found in softmax_path(objective, args.C, tol=args.tol, max_passes=args.passes):
                print(f"C = {found.C:g}, after {time.perf_counter() - began:.1f} s: {found.n_passes} passes, ", end="")
                print(f"estimated gap {found.estimated_gap[0]:.1e}, duality gap {found.certified_gap[0]:.1e}, ", end="")
                print(f"{found.explained[0]:.3f} of the loss explained {found.messages[0]}", flush=True)
        else:
            recipe = Recipe(clf=args.clf, device=args.device)
            holdout = carve(y, fraction=0.1, seed=0)
            done = select(recipe, validation(X, y, recipe, n_classes=args.classes, holdout=holdout))
            grid = len(CLASSIFIERS[args.clf].chains(args.rows, args.columns, args.rows)[0])
            said = f"{done.params} of {grid} candidates"
        seconds, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{args.clf}, {args.rows:,} x {args.columns}, {args.classes:,} classes: {said}")
    print(f"  {seconds:.1f} s; peak memory {peak / 2**20:.2f} GiB ({before / 2**20:.2f} before it began)")


if __name__ == "__main__":
    main()
