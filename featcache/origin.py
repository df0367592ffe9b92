"""A cache in; where its images and its weights came from, as it records it, out: enough to find them again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from featcache.cache import Cache
from featcache.datasets import ImageDataset, load_dataset
from featcache.recorded_command import recorded_embed


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a cache's images and weights come from.

    Attributes:
        dataset: its name, or its folder's path.
        root: where downloaded sets live.
        weights: as ``--weights`` takes them.
    """

    dataset: str
    root: Path
    weights: str | None


def origin_of(cache: Cache) -> Origin:
    """What the cache's own ``bin/embed`` was given; what it can be told from where a library call made it."""
    folder = cache.provenance["source"].get("folder")
    if not cache.provenance["command"]:
        weights = "none" if "seed" in cache.encoder["weights"] else None
        return Origin(dataset=folder or cache.dataset, root=Path("data"), weights=weights)
    recorded = recorded_embed(cache, by_hand="embed again")
    weights = recorded.arguments.weights
    if weights is not None:
        from featcache.weights import SUFFIXES

        if "/" in weights or weights.endswith(SUFFIXES):
            weights = str(recorded.folder / weights)
    return Origin(
        dataset=folder or recorded.arguments.dataset,
        root=recorded.folder / recorded.arguments.root,
        weights=weights,
    )


def original_images(cache: Cache) -> ImageDataset:
    """The data set that a cache was made of, found again. Raises UserError where it is not there."""
    origin = origin_of(cache)
    return load_dataset(origin.dataset, root=origin.root)
