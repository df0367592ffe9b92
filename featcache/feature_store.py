"""Images in, their features out: read by content where a cache of the same encoder holds them, else embedded and kept.

A store is a folder of caches with one unlabelled split, whose rows are told apart by content alone. What it lacks is
embedded into one more cache, which takes in the rows of those that are no larger and replaces them: N images that came
in any number of calls lie in some log2(N) files, and each row was copied as often at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache import layout
from featcache.cache import Cache, find_caches
from featcache.datasets import ImageDataset, Images, Split
from featcache.embedding import Embedding
from featcache.errors import CacheError, UserError
from featcache.locks import building
from featcache.plan import PlannedRows
from featcache.reuse import KnownRows, Wanted
from featcache.upkeep.garbage import delete, judged

#: What the command of a store's caches begins with, so that other commands pass over them.
COMMAND = "Embedder"
#: What a store's embedding begins with: no images yet.
NO_IMAGES = ImageDataset("embedder", ("unlabelled",), {})

_LOOKS = 3
_NAMED = 5


@dataclass(frozen=True, eq=False)
class Encoder:
    """How images become features: ``embedding``, of no data set yet, its engine and precision settled."""

    embedding: Embedding

    @property
    def n_features(self) -> int:
        """D, the length of a feature vector."""
        return int(np.prod(self.embedding.row_shape))

    @cached_property
    def wanted(self) -> Wanted:
        """Which caches serve: those of this encoder that today's stack agrees with."""
        fingerprint = layout.fingerprint(self.embedding.encoder)
        return Wanted(fingerprint, self.embedding.canary(), self.embedding.precision)


@dataclass(frozen=True, kw_only=True)
class FeatureStore:
    """Features by content.

    Attributes:
        encoder: what makes them.
        folder: of the store's own caches.
        beside: folders whose caches are read, too, and never written.
        workers: threads that read and decode ahead.
    """

    encoder: Encoder
    folder: Path
    beside: tuple[Path, ...] = ()
    workers: int = 0

    def features(self, images: Images, names: Sequence[str]) -> NDArray[np.float32]:
        """The features of images, in their order, as the storage type rounds them.

        Args:
            images: N, any of them more than once.
            names: of each, for messages.

        Returns:
            (N, D) float32.

        Raises:
            UserError: images are damaged (all others are kept, so that they are not embedded again), or as embedding
                raises it.
            CacheError: what was embedded does not read back.
        """
        content = images.digests()
        unread = np.flatnonzero(~content.any(axis=1)).tolist()
        if unread:
            reasons = images.read(unread[:_NAMED]).damaged
            raise _damaged({names[row]: reasons.get(place, "") for place, row in enumerate(unread)})
        _, first, back = np.unique(_keys(content), return_index=True, return_inverse=True)
        distinct, content = images.take(first), content[first]
        named = [names[row] for row in first.tolist()]
        for _ in range(_LOOKS):
            features, there = self._held(content)
            if there.all():
                return features[back.reshape(-1)]
            with building(self.folder / f"{self.encoder.wanted.encoder_fingerprint}.h5"):
                missing = np.flatnonzero(~self._held(content)[1])  # another process may have embedded them meanwhile
                if len(missing):
                    self._embed(distinct.take(missing), content[missing], [named[row] for row in missing.tolist()])
        raise CacheError(f"{self.folder}: rows do not read back; bin/cache verify --cache-dir {self.folder} tells more")

    def _held(self, content: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The features of distinct contents, (n, D), and which of them are there, (n,)."""
        features, there = np.empty((len(content), self.encoder.n_features), np.float32), np.zeros(len(content), bool)
        for folder in (self.folder, *self.beside):
            left = np.flatnonzero(~there)
            if not len(left):
                break
            known = KnownRows.find(folder, content[left], self.encoder.wanted)
            origins = known.origins(content[left])
            for number in np.unique(origins[origins > 0]).tolist():
                rows = left[origins == number]
                values = known.read(number, content[rows])
                if values is not None:  # else the file was replaced or is damaged
                    features[rows] = values.reshape(len(rows), -1)
                    there[rows] = True
        return features, there

    def _embed(self, images: Images, content: NDArray[np.uint8], names: Sequence[str]) -> None:
        """Make a cache of new images and of the rows of caches that are no larger, and delete these."""
        smaller = self._smaller(len(content))
        held = np.concatenate([content, *(_whole(cache) for cache in smaller)])
        _, first = np.unique(_keys(held), return_index=True)
        held = held[np.sort(first)]  # the new ones first, as they have images
        ids = tuple(row.tobytes().hex() for row in held)
        unlabelled = np.full(len(ids), -1, np.int64)
        new = Split(ids[: len(content)], unlabelled[: len(content)], images)
        work = replace(
            self.encoder.embedding,
            cache_dir=self.folder,
            workers=self.workers,
            dataset=replace(NO_IMAGES, splits={"train": new}),
            rows={"train": PlannedRows(ids, unlabelled, held)},
        )
        cache = work.run().cache
        for each in smaller:
            garbage = judged(each.path, f"its rows are in {cache.path.name}")
            if garbage and each.path != cache.path:
                delete(garbage)
        split = cache.splits["train"]
        damaged = np.flatnonzero(split.status[: len(content)] != layout.OK).tolist()
        if damaged:
            reasons = {
                names[row]: split.errors.get(ids[row], layout.STATUS_NAMES.get(int(split.status[row]), ""))
                for row in damaged
            }
            if (split.status != layout.OK).all() and (garbage := judged(cache.path, "it holds no features")):
                delete(garbage)
            raise _damaged(reasons)

    def _smaller(self, n_rows: int) -> list[Cache]:
        """The store's caches that a new one of so many rows takes in, each no larger than all before it together."""
        own = [cache for cache in find_caches(self.folder) if self._is_own(cache)]
        taken = []
        for cache in sorted(own, key=lambda cache: len(cache.splits["train"])):
            if len(cache.splits["train"]) > n_rows:
                break
            if not self.encoder.wanted.drift(cache).is_drift and not cache.damages():
                n_rows += len(cache.splits["train"])
                taken.append(cache)
        return taken

    def _is_own(self, cache: Cache) -> bool:
        command = cache.provenance["command"]
        return command[:1] == [COMMAND] and cache.encoder_fingerprint == self.encoder.wanted.encoder_fingerprint


def _whole(cache: Cache) -> NDArray[np.uint8]:
    """The contents of the rows that have features, (n, 16)."""
    split = cache.splits["train"]
    return split.content[split.status == layout.OK]


def _keys(content: NDArray[np.uint8]) -> NDArray[Any]:
    return np.ascontiguousarray(content).view(f"V{layout.DIGEST_SIZE}").reshape(-1)


def _damaged(reasons: dict[str, str]) -> UserError:
    """The error that names images without features, of which many are counted."""
    told = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:_NAMED])
    more = f" (and {len(reasons) - _NAMED:,} more)" if len(reasons) > _NAMED else ""
    return UserError(f"{told}{more}; mend or remove them")
