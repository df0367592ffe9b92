"""A loaded run and its caches in; for features of new images the ids of the nearest training images out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from featcache.cache.cache_file import Cache, find_caches
from featcache.common.errors import CacheError, UsageError, UserError
from featcache.common.files import one_line
from featcache.tables.subset import Subset
from heads.features import Features
from heads.nearest import nearest
from heads.neighbors import normalized
from heads.rows import load_rows
from heads.serving.drift import caches_of_run
from heads.serving.loaded_run import LoadedRun
from heads.standardization import Floats


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainingNeighbors:
    """What a run was fitted on, to be searched.

    Attributes:
        ids: (S,), of the rows of train and validation.
        bank: (S, D) float32, their features at length 1.
        place: where it is searched: a GPU, or None for the processor.
    """

    ids: tuple[str, ...]
    bank: Floats
    place: torch.device | None

    def nearest(self, features: Features, k: int) -> list[list[str]]:
        """The k ids of highest cosine similarity to each of n rows (their plain view), the nearest first."""
        _, rows = nearest(normalized(features.view(0).load()), self.bank, min(k, len(self.ids)), place=self.place)
        return [[self.ids[row] for row in each] for each in rows.tolist()]


def training_neighbors(run: LoadedRun, *, cache_dir: Path, device: torch.device) -> TrainingNeighbors:
    """Read the rows that the run was fitted on from its caches.

    Args:
        run: as loaded. A fine-tuned model's own features are in a cache where ``bin/embed --weights RUN`` put them.
        cache_dir: where the caches are.
        device: a GPU does the search.

    Raises:
        UserError: a cache is gone, damaged or another one, or does not hold the rows.
    """
    try:
        caches = _tuned_cache(run, cache_dir) if run.record["kind"] == "finetune" else caches_of_run(run, cache_dir)
    except CacheError as error:
        raise UserError(f"--neighbors asks for the features that {run.folder} was fitted on: {error}") from error
    chosen = run.record["dataset"].get("chosen") or {}
    try:
        told = dict(chosen.get("subset", {}))
        subset = Subset(**{**told, "classes": tuple(told.get("classes", ()))})
        fraction, seed = chosen.get("val_fraction") or 0.1, int(chosen["seed"])
    except (AttributeError, KeyError, TypeError, ValueError, UsageError) as error:
        raise UserError(f"{run.folder}: run.json does not tell which rows it chose ({one_line(error)})") from error
    rows = load_rows(caches, subset=subset, val_fraction=fraction, seed=seed, pool_maps=run.pooled, views="plain")
    if rows.fingerprint != run.record["dataset"]["fingerprint"]:
        raise UserError(f"--neighbors: {caches[0].path} does not hold the rows that {run.folder} was fitted on")
    features, ids = rows.dev.features, rows.dev.ids
    bank = np.empty(features.shape, np.float32)
    for part, block in features.blocks():
        bank[part] = normalized(block)
    return TrainingNeighbors(ids=ids, bank=bank, place=device if device.type == "cuda" else None)


def _tuned_cache(run: LoadedRun, cache_dir: Path) -> tuple[Cache, ...]:
    digest = run.backbone.weights["sha256"]
    refusals: list[CacheError] = []
    for cache in find_caches(cache_dir, on_refusal=refusals.append):
        is_its_own = cache.encoder["weights"].get("sha256") == digest and cache.dataset == run.record["dataset"]["name"]
        if is_its_own and cache.holds_vectors:
            return (cache,)
    unreadable = f" (found {'; '.join(map(str, refusals[:3]))})" if refusals else ""
    raise CacheError(
        f"{cache_dir}: no cache of its own features{unreadable}; make one with bin/embed --backbone "
        f"{run.backbone.name} --weights {run.folder} on its data set"
    )
