"""Find rows of the same encoder in other caches of a folder, by the content of their images.

Finished caches and files in the making (of this host or others, at work or dead) serve alike: of the latter only blocks
that have a checksum. All are only read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.cache import file_format
from featcache.cache.cache_file import Cache, find_caches
from featcache.cache.canary import Canary, Drift, compare, stored_canary
from featcache.common.errors import CacheError

Array = NDArray[Any]


@dataclass(frozen=True)
class _Source:
    """A cache and where the rows of each content are: ``keys`` sorted, with their split and row."""

    cache: Cache
    keys: Array
    splits: Array
    rows: NDArray[np.int64]

    @classmethod
    def index(cls, cache: Cache) -> _Source:
        keys, splits, rows = [], [], []
        for number, split in enumerate(cache.splits.values()):
            for block in np.flatnonzero(split.checksums["features"].any(axis=1)).tolist():
                try:
                    ((_, content),) = split.blocks("content", [block])
                    ((_, status),) = split.blocks("status", [block])
                except CacheError:
                    continue  # damaged: bin/cache verify tells
                start, stop = split.rows_of(block)
                usable = (status == file_format.OK) & content.any(axis=1)
                keys.append(_keys(content)[usable])
                splits.append(np.full(usable.sum(), number))
                rows.append(np.arange(start, stop)[usable])
        if not keys:
            return cls(cache, np.empty(0, "V16"), np.empty(0, np.int64), np.empty(0, np.int64))
        each = np.concatenate(keys)
        order = np.argsort(each, kind="stable")
        return cls(cache, each[order], np.concatenate(splits)[order], np.concatenate(rows)[order])

    def find(self, content: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The place of each content in ``keys``, -1 where it is not."""
        if not len(self.keys):
            return np.full(len(content), -1)
        wanted = _keys(content)
        places = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where(self.keys[places] == wanted, places, -1)

    def read(self, content: NDArray[np.uint8]) -> Array:
        places = self.find(content)
        if (places < 0).any():
            raise CacheError(f"{self.cache.path}: rows that it held are gone")
        features = np.empty((len(content), *next(iter(self.cache.splits.values())).row_shape), self._dtype)
        for number, split in enumerate(self.cache.splits.values()):
            here = np.flatnonzero(self.splits[places] == number)
            features[here] = split.read(self.rows[places[here]])
        return features

    @property
    def _dtype(self) -> np.dtype[Any]:
        return next(iter(self.cache.splits.values())).stored["features"].dtype

    def told(self) -> dict[str, Any]:
        provenance = self.cache.provenance
        keys = ("fingerprint", "batch", "threads", "hardware", "versions")
        return {"file": self.cache.path.name, **{key: provenance[key] for key in keys}}


@dataclass(frozen=True)
class Wanted:
    """Which caches may give rows.

    Attributes:
        encoder_fingerprint: of the encoder that made them.
        canary: of today's stack: caches that it does not agree with give none.
        precision: of the encoder.
    """

    encoder_fingerprint: str
    canary: Canary
    precision: str

    def drift(self, cache: Cache) -> Drift:
        return compare(stored_canary(cache), self.canary, precision=self.precision)


class KnownRows:
    """Rows that other files hold; numbered sources, of which any may vanish at any time.

    Attributes:
        drifted: notes on caches that were passed over: today's stack makes other features, or they can't be read now.
    """

    def __init__(self, sources: Sequence[_Source | None] = (), drifted: Sequence[str] = ()) -> None:
        self._sources = list(sources)
        self.drifted = tuple(drifted)

    @classmethod
    def find(cls, folder: Path, content: Array, wanted: Wanted) -> KnownRows:
        """Look through a folder of caches for rows of these contents, (N, 16) uint8."""
        sources: list[_Source] = []
        refusals: list[CacheError] = []
        caches = (*find_caches(folder, on_refusal=refusals.append), *find_partials(folder, on_refusal=refusals.append))
        drifted = [f"no rows are taken from {error}" for error in refusals if error.kind in ("unreadable", "in use")]
        missing = np.ones(len(content), bool)
        for cache in caches:
            if cache.encoder_fingerprint != wanted.encoder_fingerprint:
                continue
            source = _Source.index(cache)
            here = missing & (source.find(content) >= 0)
            if not here.any():
                continue
            if (drift := wanted.drift(cache)).is_drift:
                drifted.append(f"{here.sum():,} rows of {cache.path} are not reused: {drift}")
                continue
            missing &= ~here
            sources.append(source)
        return cls(sources[: file_format.MAX_SOURCES], drifted)

    @classmethod
    def reopen(cls, folder: Path, told: Sequence[Mapping[str, Any]], wanted: Wanted) -> KnownRows:
        """The sources that an interrupted build took rows from, under the same numbers, as far as they still serve."""
        there = {
            (cache.path.name, cache.fingerprint): cache for cache in (*find_partials(folder), *find_caches(folder))
        }
        sources: list[_Source | None] = []
        for source in told:
            cache = there.get((source["file"], source["fingerprint"]))
            serves = cache and cache.encoder_fingerprint == wanted.encoder_fingerprint
            sources.append(_Source.index(cache) if cache and serves and not wanted.drift(cache).is_drift else None)
        return cls(sources)

    def origins(self, content: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(N,) uint8: the number of the source that holds each content, from 1; 0 where none does."""
        origins = np.zeros(len(content), np.uint8)
        for number, source in enumerate(self._sources, 1):
            if source:
                origins[(origins == 0) & (source.find(content) >= 0)] = number
        return origins

    def read(self, number: int, content: NDArray[np.uint8]) -> Array | None:
        """The features of these contents from a source, checked; None where it is not there any more, or damaged."""
        source = self._sources[number - 1] if number <= len(self._sources) else None
        if source is None:
            return None
        try:
            return source.read(content)
        except CacheError:
            return None

    def told(self) -> list[dict[str, Any]]:
        """What is recorded of the sources."""
        return [source.told() for source in self._sources if source]


def count_known(folder: Path, content: NDArray[np.uint8], encoder_fingerprints: Sequence[str]) -> list[int]:
    """How many of the contents, (N, 16) uint8, the files of a folder hold, by encoder; drift is not looked for."""
    known = {fingerprint: np.zeros(len(content), bool) for fingerprint in encoder_fingerprints}
    for cache in (*find_caches(folder), *find_partials(folder)):
        if cache.encoder_fingerprint in known:
            known[cache.encoder_fingerprint] |= _Source.index(cache).find(content) >= 0
    return [int(known[fingerprint].sum()) for fingerprint in encoder_fingerprints]


def find_partials(folder: Path, *, on_refusal: Callable[[CacheError], None] = lambda error: None) -> list[Cache]:
    """The files in the making in a folder, of this host and others; ``on_refusal`` as for ``find_caches``."""
    found = []
    for path in sorted(folder.glob(".*.partial")):
        try:
            found.append(Cache.open_unsealed(path))
        except CacheError as error:
            on_refusal(error)
    return found


def _keys(content: NDArray[np.uint8]) -> Array:
    return np.ascontiguousarray(content).view("V16").reshape(-1)
