"""Paths of caches and a choice of rows in, small enough to send anywhere; the rows themselves, opened there, out."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

from featcache.cache.cache_file import Cache
from featcache.common.errors import UserError
from featcache.tables.subset import Subset
from heads.exclusion import Exclusion
from heads.rows import Rows, load_rows

_REMEMBERED = 2  # sets of rows, of which a worker keeps the latest opened


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a head is fitted on, by the paths of its caches.

    Attributes:
        paths: absolute, of caches whose features are put side by side.
        fingerprints: theirs; a file that was replaced in the meantime is refused.
        subset, exclude, val_fraction, seed, pool_maps, views: as in `load_rows`.
    """

    paths: tuple[Path, ...]
    fingerprints: tuple[str, ...]
    subset: Subset = field(default_factory=Subset)
    exclude: Exclusion | None = None
    val_fraction: float = 0.1
    seed: int = 0
    pool_maps: bool = False
    views: Literal["all", "plain"] = "all"

    def __hash__(self) -> int:
        return hash((self.paths, self.fingerprints, self.seed))

    def caches(self) -> tuple[Cache, ...]:
        """The caches, opened. Raises UserError where one is another than it was."""
        return _opened(self)[0]

    def rows(self, *, seed: int | None = None) -> Rows:
        """The rows, validation carved anew with a seed where one is given."""
        rows = _opened(self)[1]
        return rows if seed is None or seed == self.seed else rows.recarved(seed)


@lru_cache(maxsize=_REMEMBERED)
def _opened(source: Source) -> tuple[tuple[Cache, ...], Rows]:
    caches = tuple(Cache.open(path) for path in source.paths)
    for cache, fingerprint in zip(caches, source.fingerprints, strict=True):
        if cache.fingerprint != fingerprint:
            raise UserError(f"{cache.path}: was replaced while the command ran; run the command again")
    rows = load_rows(
        caches,
        subset=source.subset,
        exclude=source.exclude,
        val_fraction=source.val_fraction,
        seed=source.seed,
        pool_maps=source.pool_maps,
        views=source.views,
    )
    return caches, rows
