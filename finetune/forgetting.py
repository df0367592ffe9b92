"""Another data set, and a backbone before and after its fine-tuning in; what a head on its features has lost out.

The features go through featcache's own embedding into caches, so that those of the start are there for the next run.
These lie in a folder of their own below the caches': the newest cache is what other commands take, and these are not
what a user asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from featcache.cache.cache_file import Cache
from featcache.common.errors import UserError
from featcache.common.ranks import ALONE, Ranks
from featcache.embedding.job import Embedding
from featcache.models.backbones import Backbone
from featcache.models.finetuned_weights import MODEL_FILE
from featcache.models.weights import sha256
from featcache.sources.image_sets import ImageDataset
from heads.evidence.paired import paired_difference
from heads.head_run import fit_head
from heads.recipe import Recipe
from heads.rows import load_rows

#: Below the folder of the caches.
FOLDER = "forgetting"


@dataclass(frozen=True, eq=False, kw_only=True)
class Scored:
    """A head fitted on the features of one cache, and scored once on its test rows.

    Attributes:
        cache: whose features.
        clf: the head's kind; its hyper-parameters were chosen on validation rows of the same set.
        params: what was chosen.
        fingerprint: of the rows.
        n_train, n_val: how many it was chosen on; it was refitted on both.
        hits: bool (N,), which of the test rows it has right.
    """

    cache: Cache
    clf: str
    params: dict[str, Any]
    fingerprint: str
    n_train: int
    n_val: int
    hits: NDArray[np.bool_]

    def to_json(self) -> dict[str, Any]:
        """For ``run.json``."""
        return {
            "accuracy": float(self.hits.mean()),
            "params": self.params,
            "cache": self.cache.path.name,
            "encoder_fingerprint": self.cache.encoder_fingerprint,
        }


def embedded(
    dataset: ImageDataset,
    backbone: Backbone,
    *,
    folder: Path,
    storage: str = "float16",
    device: torch.device,
    workers: int = 0,
    ranks: Ranks = ALONE,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> Cache:
    """The cache of a set's features, made now where it is not there; eager and in fp32, the same before and after.

    Raises:
        UserError: as embedding does.
    """
    work = Embedding(
        dataset=dataset,
        backbone=backbone,
        cache_dir=folder / FOLDER,
        storage=storage,
        device=device,
        workers=workers,
        max_gb=20,
        ranks=ranks,
    )
    return work.run(on_progress=on_progress, on_note=on_note).cache


def tuned_backbone(start: Backbone) -> Backbone:
    """The backbone whose model has been trained in place: what ``bin/embed --weights`` makes of the run's weights."""
    return Backbone(
        name=start.name,
        staged=start.staged,
        preprocessing=start.preprocessing,
        weights={"name": MODEL_FILE, "sha256": sha256(start.staged.model.state_dict())},
    )


def scored(cache: Cache, *, clf: str = "ridge", val_fraction: float = 0.1, seed: int = 0) -> Scored:
    """Fit a head on the cache's train and validation rows, and score it on its test rows.

    Raises:
        UserError: the set has too few rows or classes.
    """
    rows = load_rows(cache, seed=seed, val_fraction=val_fraction, views="plain")
    found = fit_head(rows, Recipe(clf=clf, seed=seed))
    return Scored(
        cache=cache,
        clf=clf,
        params=found.selection.params,
        fingerprint=rows.fingerprint,
        n_train=len(rows.train),
        n_val=len(rows.val),
        hits=found.predictions["test_scores"].argmax(axis=1) == rows.test.labels,
    )


def forgotten(start: Scored, tuned: Scored, *, seed: int = 0) -> dict[str, Any]:
    """The change of test accuracy, tuned minus start, with its paired interval, as ``run.json`` holds it.

    Raises:
        UserError: the two were scored on different rows.
    """
    if start.fingerprint != tuned.fingerprint:
        raise UserError(
            f"{start.cache.path} and {tuned.cache.path} have different rows: the images changed meanwhile; run again"
        )
    change = asdict(paired_difference(tuned.hits, start.hits, seed=seed))
    return {
        "dataset": start.cache.dataset,
        "fingerprint": start.fingerprint,
        "clf": start.clf,
        "n_train": start.n_train,
        "n_val": start.n_val,
        "n_test": len(start.hits),
        "start": start.to_json(),
        "tuned": tuned.to_json(),
        "difference": change["difference"],
        "ci95": list(change["ci95"]),
        "bootstrap_ci95": list(change["bootstrap_ci95"]),
        "n_only_tuned": change["n_only_a"],
        "n_only_start": change["n_only_b"],
        "p_value": change["p_value"],
    }
