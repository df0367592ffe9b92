"""Read features by the content of images from caches of the same encoder, and embed and keep what is missing.

A store is a folder of caches with one unlabelled split, whose rows are told apart by content alone. What it lacks is
embedded into one more cache, which takes in the rows of those that are no larger and replaces them: N images that came
in any number of calls lie in some log2(N) files, and each row was copied as often at most.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.build.reuse import KnownRows
from featcache.cache import file_format
from featcache.cache.cache_file import Cache, find_caches
from featcache.common import hashing
from featcache.common.errors import CacheError
from featcache.common.locks import building
from featcache.embedding.frozen_encoder import SPLIT, Encoder
from featcache.maintenance.garbage import delete, judged
from featcache.sources.image_inputs import DistinctImages, damaged

#: What the command of a store's caches begins with, so that other commands pass over them.
COMMAND = "Embedder"

_LOOKS = 3


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

    def features(self, images: DistinctImages) -> NDArray[np.float32]:
        """The features of images of different contents, as the storage type rounds them.

        Returns:
            (n, D) float32.

        Raises:
            UserError: images are damaged (all others are kept, so that they are not embedded again), or as embedding
                raises it.
            CacheError: what was embedded does not read back.
        """
        for _ in range(_LOOKS):
            features, there = self._held(images.content)
            if there.all():
                return features
            with building(self.folder / f"{self.encoder.wanted.encoder_fingerprint}.h5"):
                missing = np.flatnonzero(~self._held(images.content)[1])  # another process may have been here meanwhile
                if len(missing):
                    self._embed(images.take(missing))
        raise CacheError(
            f"{self.folder}: rows do not read back; bin/cache verify --cache-dir {self.folder} names what to delete"
        )

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

    def _embed(self, new: DistinctImages) -> None:
        """Make a cache of new images and of the rows of caches that are no larger, and delete these."""
        n_new, smaller = len(new.names), self._smaller(len(new.names))
        held = np.concatenate([new.content, *(_whole(cache) for cache in smaller)])
        _, first = np.unique(_keys(held), return_index=True)
        more = held[np.sort(first)][n_new:]
        work = self.encoder.embedding_of(new, workers=self.workers, more=more)
        work = replace(work, cache_dir=self.folder, command=(COMMAND,))
        cache = work.run().cache
        for each in smaller:
            if each.path != cache.path:
                _delete(each, f"its rows are in {cache.path.name}")
        made = cache.splits[SPLIT]
        failed = np.flatnonzero(made.status[:n_new] != file_format.OK).tolist()
        if failed:
            if (made.status != file_format.OK).all():
                _delete(cache, "it holds no features")
            reasons = {row: file_format.STATUS_NAMES.get(int(made.status[row]), "no features") for row in failed}
            raise damaged({new.names[row]: made.errors.get(made.ids[row], reason) for row, reason in reasons.items()})

    def _smaller(self, n_rows: int) -> list[Cache]:
        """The store's caches that a new one of so many rows takes in, each no larger than all before it together."""
        own = [cache for cache in find_caches(self.folder) if self._is_own(cache)]
        taken = []
        for cache in sorted(own, key=lambda cache: len(cache.splits[SPLIT])):
            if len(cache.splits[SPLIT]) > n_rows:
                break
            if not self.encoder.wanted.drift(cache).is_drift and not cache.damages():
                n_rows += len(cache.splits[SPLIT])
                taken.append(cache)
        return taken

    def _is_own(self, cache: Cache) -> bool:
        command = cache.provenance["command"]
        return command[:1] == [COMMAND] and cache.encoder_fingerprint == self.encoder.wanted.encoder_fingerprint


def _whole(cache: Cache) -> NDArray[np.uint8]:
    """The contents of the rows that have features, (n, 16)."""
    split = cache.splits[SPLIT]
    return split.content[split.status == file_format.OK]


def _keys(content: NDArray[np.uint8]) -> NDArray[Any]:
    return np.ascontiguousarray(content).view(f"V{hashing.DIGEST_SIZE}").reshape(-1)


def _delete(cache: Cache, reason: str) -> None:
    garbage = judged(cache.path, reason)
    if garbage:
        delete(garbage)
