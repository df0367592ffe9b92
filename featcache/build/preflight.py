"""Checks before and after embedding: disk space, drift, damaged images, a finished file of the same name."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from featcache.build.plan import Plan
from featcache.cache import file_format
from featcache.cache.cache_file import Cache
from featcache.cache.canary import Canary, compare, stored_canary
from featcache.common.errors import CacheError, UserError
from featcache.common.machine import versions


def finished_cache(path: Path, plan: Plan) -> Cache | None:
    """The sealed cache of a plan; None if there is none, or one that is damaged: a build may replace that.

    Damage counts if it is seen twice.

    Raises:
        CacheError: the file may be sound, but can't be read now, is open for writing in another process, or is of
            another version, program or plan: it must not be replaced.
    """
    for _ in range(2):
        try:
            cache = Cache.open(path)
            if cache.fingerprint != plan.fingerprint:
                raise CacheError("holds another cache than its name says; move it away", path=path, kind="foreign")
            return cache if plan.describes(cache) else None
        except CacheError as error:
            if error.may_be_sound:
                raise
    return None


def refuse_lack_of_space(
    folder: Path, n_rows: int, row_shape: tuple[int, ...], storage: str, max_gb: float | None
) -> None:
    """Before anything is read: features beyond ``max_gb`` (units of 10^9 bytes), or beyond what the disk has free.

    Where the folder holds caches already, the one that is asked for or its rows may be there: then the builder asks.
    """
    n_bytes = file_format.n_bytes(np.dtype(storage), (n_rows, *row_shape))
    if max_gb is not None and n_bytes > max_gb * 1e9:
        needed = f"{n_rows:,} rows of {' x '.join(map(str, row_shape))} take {n_bytes:,} bytes"
        raise UserError(f"{needed}, more than --max-gb {max_gb:g}: raise it, or choose fewer rows or a later cut")
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(there).free
    if n_bytes > free and not any(folder.glob("*.h5")) and not any(folder.glob(".*.partial")):
        raise UserError(f"{folder}: {n_rows:,} rows need {n_bytes:,} bytes, and {free:,} are free")


def refuse_drift(cache: Cache, canary: Canary) -> None:
    """A finished cache whose pictures' features are not today's.

    Today's are eager's, which needs no set-up; another engine's may be further from them.
    """
    precision = cache.encoder["precision"]
    across = cache.encoder["engine"] != "eager"
    drift = compare(stored_canary(cache), canary, precision=precision, across_engines=across)
    if not drift.is_drift:
        return
    before, now = cache.provenance["versions"], versions()
    changed = [f"{name} {before.get(name)} then, {now[name]} now" for name in now if before.get(name) != now[name]]
    raise CacheError(
        f"{cache.path}: today's stack makes other features than it holds: {'; '.join([str(drift), *changed])}; "
        "delete it to embed anew, or go back to what made it"
    )


def refuse_damaged(cache: Cache) -> None:
    """What ``--strict`` asks for, of rows that were there already."""
    for split in cache.splits.values():
        for row in np.flatnonzero(split.status != file_format.OK).tolist():
            name, reason = split.ids[row], file_format.STATUS_NAMES.get(int(split.status[row]), "no features")
            raise UserError(f"{name}: {split.errors.get(name, reason)}; mend or remove it, or go without --strict")
