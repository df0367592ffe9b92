"""List all caches of a folder: finished, unfinished, and those that can't be opened, with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np

from featcache.cache.cache_file import Cache
from featcache.cache.split import CachedSplit
from featcache.common.errors import CacheError
from featcache.maintenance.unfinished_files import find_work_files, work_file


@dataclass(frozen=True)
class Entry:
    """One file.

    Attributes:
        path: of the file.
        state: ``sealed``, ``partial`` (in the making), or ``unreadable``.
        time: it was sealed, or else last written; seconds since 1970.
        n_bytes: of the file.
        dataset, backbone: their names; empty where the file is unreadable.
        rows: of all splits.
        rows_done: of these, the ones that count.
        in_use: whether a process of this host is building it.
        reason: why it is unreadable.
        kind: of that reason, as ``CacheError`` says it; empty unless unreadable.
    """

    path: Path
    state: Literal["sealed", "partial", "unreadable"]
    time: float
    n_bytes: int
    dataset: str = ""
    backbone: str = ""
    rows: int = 0
    rows_done: int = 0
    in_use: bool = False
    reason: str = ""
    kind: str = ""


def inventory(folder: Path) -> list[Entry]:
    """All caches of a folder, newest first."""
    return sorted(_entries(folder), key=lambda entry: entry.time, reverse=True)


def cache_paths(folder: Path) -> list[Path]:
    """The files of a folder that are named like finished caches, by name."""
    return sorted(folder.glob("[!.]*.h5"))


def open_any(path: Path) -> Cache:
    """Open a cache, finished or in the making. Raises CacheError where it is neither."""
    found = work_file(path)
    return Cache.open_unsealed(path) if found and found.kind == "partial" else Cache.open(path)


def rows_done(split: CachedSplit) -> int:
    """Rows in blocks that have a checksum: those that count."""
    blocks = np.flatnonzero(split.checksums["features"].any(axis=1)).tolist()
    return sum(stop - start for start, stop in map(split.rows_of, blocks))


def _entries(folder: Path) -> Iterator[Entry]:
    in_use = {work.path: work.is_in_use for work in find_work_files(folder) if work.kind == "partial"}
    for path in (*cache_paths(folder), *in_use):
        try:
            status = path.stat()
        except OSError as error:  # gone meanwhile, or a link that leads nowhere
            reason = f"cannot be read ({error.strerror})"
            yield Entry(path, "unreadable", 0.0, 0, reason=reason, kind="unreadable")
            continue
        written, n_bytes = status.st_mtime, status.st_size
        try:
            cache = open_any(path)
            done = sum(map(rows_done, cache.splits.values()))
        except CacheError as error:
            is_in_use = in_use.get(path, False)
            yield Entry(path, "unreadable", written, n_bytes, in_use=is_in_use, reason=error.reason, kind=error.kind)
            continue
        yield Entry(
            path=path,
            state="partial" if path in in_use else "sealed",
            time=written if path in in_use else _seconds(str(cache.provenance["created"]), written),
            n_bytes=n_bytes,
            dataset=cache.dataset,
            backbone=str(cache.encoder["backbone"]),
            rows=sum(map(len, cache.splits.values())),
            rows_done=done,
            in_use=in_use.get(path, False),
        )


def _seconds(created: str, otherwise: float) -> float:
    """A recorded time (UTC, ending in Z) in seconds since 1970."""
    try:
        return datetime.fromisoformat(f"{created.removesuffix('Z')}+00:00").timestamp()
    except (ValueError, OverflowError):
        return otherwise
