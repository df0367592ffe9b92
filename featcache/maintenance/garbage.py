"""Find and delete files that no longer serve anything in a folder of caches, each with the reason.

Only regular files whose names builders give are ever named, so that whatever else lies in the folder stays.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.cache import file_format
from featcache.cache.cache_file import Cache
from featcache.cache.canary import compare, stored_canary
from featcache.common import hashing
from featcache.common.errors import CacheError
from featcache.common.locks import building, is_building, is_open_for_writing
from featcache.maintenance.inventory import cache_paths, open_any
from featcache.maintenance.unfinished_files import WorkFile, find_work_files, work_file

#: As ``Plan.file_name`` names finished caches: an HDF5 file of another origin is not ours to delete.
_CACHE_NAME = re.compile(r".+-.+-[0-9a-f]{8}\.h5", re.DOTALL)
_DAY = 86400.0


@dataclass(frozen=True)
class Garbage:
    """A file that serves nothing any more.

    Attributes:
        path: of the file.
        reason: why.
        n_bytes: of the file.
        identity: device, inode and time of change when it was judged; a lock's time is 0, since looking changes it.
        is_damaged: whether damage is the reason; it is looked for again before the file is deleted.
    """

    path: Path
    reason: str
    n_bytes: int
    identity: tuple[int, int, int]
    is_damaged: bool = False


def find_garbage(
    folder: Path,
    *,
    older_than: float = 7.0,
    damaged: bool = False,
    superseded: bool = False,
    on_unjudged: Callable[[CacheError], None] = lambda error: None,
) -> list[Garbage]:
    """Judge the files of a folder.

    Args:
        folder: of the caches.
        older_than: days since the last write after which a file in the making counts as given up.
        damaged: whether to name caches, too, that are damaged or of an older format; reads every block.
        superseded: whether to name caches, too, whose rows another cache of the same encoder holds.
        on_unjudged: called with the error of each file that may be sound, but can't be opened.
    """
    work = find_work_files(folder)
    found = dict(_given_up(work, older_than * _DAY))
    finished = [path for path in cache_paths(folder) if _CACHE_NAME.fullmatch(path.name) and not path.is_symlink()]
    begun = [each.path for each in work if each.kind == "partial" and each.is_ours and not each.is_in_use]
    broken: dict[Path, str] = {}
    sound: list[Cache] = []
    for path in (*(finished if damaged or superseded else ()), *(begun if damaged else ())):
        if path in found or (path in finished and is_building(path)):
            continue
        try:
            if reason := damage_of(path):
                broken[path] = reason
            elif path in finished:
                sound.append(Cache.open(path))
        except CacheError as error:
            if error.may_be_sound:
                on_unjudged(error)
    if damaged:
        found |= broken
    if superseded:
        found |= dict(_superseded(sound))
    in_the_making = {(each.cache, each.host) for each in work if each.kind == "partial" and each.path not in found}
    found |= dict(_idle_locks(work, in_the_making, older_than * _DAY))
    each = (judged(path, reason, is_damaged=path in broken) for path, reason in found.items())
    return [garbage for garbage in each if garbage]


def delete(garbage: Garbage) -> str:
    """Delete a file, unless it is in use or another than was judged; gives the reason where it stays, else nothing.

    Raises:
        UserError: the folder can't be written.
    """
    work = work_file(garbage.path)
    cache = work.cache if work else garbage.path
    try:
        with building(cache, on_wait=_in_use):  # makes this host's lock where there was none
            is_our_lock = work is not None and work.kind == "lock" and work.is_ours
            kept = "" if is_our_lock else _why_kept(garbage)
            if not kept and not is_our_lock:
                garbage.path.unlink()
            _unlink_lock(cache)
            return kept or ("it changed meanwhile" if garbage.path.exists() else "")
    except _InUseError:
        return "a process is building that cache"


def _why_kept(garbage: Garbage) -> str:
    """Judge a file once more, just before it is deleted: why it stays, or nothing."""
    if garbage.is_damaged:
        try:
            if not damage_of(garbage.path):
                return "it reads well now"
        except CacheError as error:
            return error.reason
    if is_open_for_writing(garbage.path):
        return "open for writing in another process"
    changed = judged(garbage.path, garbage.reason, is_damaged=garbage.is_damaged) != garbage
    return "it changed meanwhile" if changed else ""


class _InUseError(Exception):
    """A process is building that cache."""


def _in_use(holder: str) -> None:
    raise _InUseError(holder)


def _unlink_lock(cache: Path) -> None:
    """Remove this host's lock file, which the caller holds, unless a file in the making needs it."""
    ours = [each for each in find_work_files(cache.parent) if each.cache == cache and each.is_ours]
    if not any(each.kind == "partial" for each in ours):
        for lock in (each for each in ours if each.kind == "lock"):
            lock.path.unlink(missing_ok=True)


def judged(path: Path, reason: str, *, is_damaged: bool = False) -> Garbage | None:
    """A file that serves nothing any more, as it is now; None where it is gone."""
    with suppress(FileNotFoundError):
        status = path.lstat()
        work = work_file(path)
        time_ns = 0 if work and work.kind == "lock" else status.st_mtime_ns
        return Garbage(path, reason, status.st_size, (status.st_dev, status.st_ino, time_ns), is_damaged)
    return None


def _given_up(work: list[WorkFile], seconds: float) -> Iterator[tuple[Path, str]]:
    for each in work:
        if each.kind == "lock" or each.is_in_use:
            continue
        age = _age(each.path)
        days = f"last written {age / _DAY:.1f} days ago"
        if each.kind == "leftover" and each.is_ours:
            yield each.path, "left over from a process that ended while it made the file"
        elif age > seconds:
            whose = "" if each.is_ours else ", of another host"
            yield each.path, f"in the making, and nobody is building it: {days}{whose}"


def _idle_locks(
    work: list[WorkFile], in_the_making: set[tuple[Path, str]], seconds: float
) -> Iterator[tuple[Path, str]]:
    for each in work:
        if each.kind == "lock" and (each.cache, each.host) not in in_the_making and not each.is_in_use:
            if each.is_ours:
                yield each.path, "a lock that nobody holds"
            elif _age(each.path) > seconds:
                yield each.path, f"a lock of another host, last written {_age(each.path) / _DAY:.1f} days ago"


def _age(path: Path) -> float:
    try:
        return time.time() - path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0


def damage_of(path: Path) -> str:
    """What makes a cache, finished or in the making, of no use, if it is seen twice; else nothing.

    Raises:
        CacheError: the file can't be judged: it can't be read now, say, or is open for writing in another process.
    """
    if not _damage_seen(path):
        return ""
    with suppress(OSError, AttributeError), path.open("rb") as file:  # bits also flip in memory: read the disk again
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    damage = _damage_seen(path)
    if damage and is_open_for_writing(path):
        raise CacheError("open for writing in another process; close it there", path=path, kind="in use")
    return damage


def _damage_seen(path: Path) -> str:
    try:
        cache = open_any(path)
        damages = cache.damages() if cache.provenance["sealed"] else []
    except CacheError as error:
        if not error.is_damage:
            raise
        return error.reason
    if not damages:
        return ""
    return f"damaged: {damages[0]}" + (f" (and {len(damages) - 1:,} more)" if len(damages) > 1 else "")


def _superseded(caches: list[Cache]) -> Iterator[tuple[Path, str]]:
    """Caches whose usable rows another holds. Of two that hold the same rows the newer one stays."""
    rows = {cache.path: _usable_content(cache) for cache in caches}
    for cache in caches:
        held = rows[cache.path]
        for other in caches:
            if other is cache or other.encoder_fingerprint != cache.encoder_fingerprint or not len(held):
                continue
            theirs = rows[other.path]
            if len(theirs) < len(held) or not np.isin(held, theirs).all():
                continue
            if len(theirs) == len(held) and _age_key(other) < _age_key(cache):
                continue
            precision = str(cache.encoder["precision"])
            if compare(stored_canary(other), stored_canary(cache), precision=precision).is_drift:
                continue
            yield cache.path, f"all its {len(held):,} images are in {other.path.name}, of the same encoder"
            break


def _usable_content(cache: Cache) -> NDArray[np.void]:
    """The distinct contents of rows that have features."""
    each = [split.content[split.status == file_format.OK] for split in cache.splits.values()]
    keys = np.ascontiguousarray(np.concatenate(each)).view(f"V{hashing.DIGEST_SIZE}").reshape(-1)
    return np.unique(keys)


def _age_key(cache: Cache) -> tuple[str, str]:
    return str(cache.provenance["created"]), cache.path.name
