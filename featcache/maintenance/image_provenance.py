"""Find where a cache's images and weights came from, and the images themselves if they still exist."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from featcache.cache.cache_file import Cache
from featcache.maintenance.recorded_command import recorded_embed
from featcache.sources.decoding import Pixels
from featcache.sources.image_sets import ImageDataset, load_dataset

_AT_ONCE = 64  # images decoded before they are let go


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
        from featcache.models.weights import SUFFIXES

        if "/" in weights or weights.endswith(SUFFIXES):
            weights = str(recorded.folder / weights)
    return Origin(
        dataset=folder or recorded.arguments.dataset,
        root=recorded.folder / recorded.arguments.root,
        weights=weights,
    )


def original_dataset(cache: Cache) -> ImageDataset:
    """The data set that a cache was made of, found again. Raises UserError where it is not there."""
    origin = origin_of(cache)
    return load_dataset(origin.dataset, root=origin.root)


@dataclass(frozen=True, eq=False)
class OriginalImages:
    """The images that a cache was made of, as far as they still are what was embedded.

    Attributes:
        dataset: it, found again.
        at: for each of its splits, where an id is.
    """

    dataset: ImageDataset
    at: Mapping[str, Mapping[str, int]]

    @classmethod
    def of(cls, cache: Cache, dataset: ImageDataset | None = None) -> OriginalImages:
        """Find them, where the data set is not given. Raises UserError where it is not there."""
        dataset = original_dataset(cache) if dataset is None else dataset
        at = {name: {row: i for i, row in enumerate(split.ids)} for name, split in dataset.splits.items()}
        return cls(dataset, at)

    def place(self, split: str, name: str) -> tuple[str, int] | None:
        """The split and number of an id of a split of the cache; None where it is gone.

        Another seed may have carved another test split: what is not in its own is looked for in the others.
        """
        for here in (split, *(other for other in self.at if other != split)):
            if name in self.at.get(here, ()):
                return here, self.at[here][name]
        return None

    def pixels(self, wanted: Sequence[tuple[str, str, bytes]]) -> Iterator[tuple[int, Pixels]]:
        """Decode images; those gone, changed or damaged are passed over.

        Args:
            wanted: split, id and content digest of each, as in the cache.

        Yields:
            The position in ``wanted``, and the image, (H, W) or (H, W, 3) uint8; split by split.
        """
        by_split: dict[str, list[tuple[int, int]]] = {}
        for position, (own, name, _) in enumerate(wanted):
            if (found := self.place(own, name)) is not None:
                by_split.setdefault(found[0], []).append((position, found[1]))
        for split, pairs in by_split.items():
            images = self.dataset.splits[split].images
            for start in range(0, len(pairs), _AT_ONCE):
                part = pairs[start : start + _AT_ONCE]
                read = images.read([number for _, number in part])
                for place, (position, _) in enumerate(part):
                    if place not in read.damaged and read.digests[place].tobytes() == wanted[position][2]:
                        yield position, read.pixels[place]
