"""Groups of a comparison whose runs are drawn: what the statistics of a verdict work on, without any training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.comparison.differences import differences_of
from finetune.comparison.groups import Finished, Group
from finetune.comparison.methods import strategy_of
from finetune.comparison.results import Cell, Kind, Verdict
from finetune.comparison.verdict import verdict_of

Rng = np.random.Generator


def a_record(
    method: str, hits: NDArray[np.bool_], *, val: float, n_train: int, seed: int, **changed: Any
) -> dict[str, Any]:
    """What comparing reads of a ``run.json``."""
    accuracy = float(hits.mean())
    metrics = {"accuracy": accuracy, "log_loss": 0.5}
    return {
        "kind": "finetune",
        "method": method,
        "seed": seed,
        "dataset": {"name": "drawn", "fingerprint": f"rows {n_train} {seed}", "n_train": n_train, "n_test": len(hits)},
        "encoder": {"backbone": "resnet18", "preprocessing": {"image_size": 32}},
        "augment": "none",
        "params": {},
        "selection": {"refit": False},
        "trainable_params": 10,
        "total_params": 100,
        "metrics": {"train": {"accuracy": 1.0}, "val": {"accuracy": val}, "test": metrics},
        "cost": {"embed_s": 10.0, "fit_s": 1.0 if strategy_of(method) == "features" else 121.0, "peak_rss_mb": 500.0},
        **changed,
    }


def a_group(
    method: str,
    hits: NDArray[np.bool_],
    *,
    val: Sequence[float] | float = 0.5,
    n_train: int = 500,
    fraction: float = 1.0,
    kind: Kind | None = None,
    test_rows: str = "test rows",
    failures: Sequence[str] = (),
    **changed: Any,
) -> Group:
    """A method whose seeds had these rows right, bool (S, N)."""
    vals = [val] * len(hits) if isinstance(val, float) else list(val)
    kind = kind or ("head" if method in ("logreg", "knn", "svm") else "finetune")
    runs = {
        seed: Finished(
            folder=Path(f"/runs/{method}-{seed}"),
            record=a_record(method, own, val=vals[seed], n_train=n_train, seed=seed, **changed),
            test_rows=test_rows,
            hits=own,
        )
        for seed, own in enumerate(hits)
    }
    told: dict[str, Any] = {"backbone": "resnet18", "method": method, "kind": kind, "fraction": fraction}
    cells = [Cell(**told, seed=seed, run=run.folder) for seed, run in runs.items()]
    cells += [Cell(**told, seed=len(hits) + i, run=None, failure=reason) for i, reason in enumerate(failures)]
    return Group(**told, cells=tuple(cells), runs=runs)


def verdict_on(*groups: Group) -> Verdict:
    return verdict_of(groups, differences_of(groups))


class DrawnSet:
    """A set of images that are more or less hard, on which methods of any accuracy are drawn.

    A row is right where its ease, which all methods share, and luck of the method, of the seed, and of the method's
    seed on that row come to more than a threshold. The methods of a set have the same distribution but for ``gain``.
    """

    def __init__(self, rng: Rng, *, n_rows: int, own: float, seed_sd: float = 0.0) -> None:
        self.rng, self.n_rows, self.own, self.seed_sd = rng, n_rows, own, seed_sd
        self.ease = rng.normal(0.0, 1.0, n_rows)

    def method(self, *, n_seeds: int, gain: float = 0.0) -> NDArray[np.bool_]:
        """Hits (S, N); ``gain`` moves the threshold."""
        kept = self.rng.normal(0.0, self.own, self.n_rows)
        luck = self.rng.normal(0.0, self.own, (n_seeds, self.n_rows))
        seeds = self.rng.normal(0.0, self.seed_sd, (n_seeds, 1))
        return np.asarray(self.ease + kept + luck + seeds + gain > -1.0)
