"""Lines in, one item after the other; a file out that appears when it is whole, and a broken-off one gone on with.

While it is in the making, lines are appended to ``.<name>.partial``. Once a second both it and a record of how far it
counts (bytes, items, a digest of the items) are put on the disk, the record by a rename, so that a kill or a power loss
at any moment leaves a record that the file bears out. What lies beyond is dropped, a torn line among it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from featcache.common import hashing
from featcache.common.disk import explained, sync_folder
from featcache.common.errors import UserError
from featcache.common.locks import lock_now
from heads.plain_data import read_object

_FORMAT, _VERSION = "featcache-predictions", 1
#: Seconds between two records.
SYNC_EVERY = 1.0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a file has come.

    Attributes:
        items: that have their lines.
        n_bytes: of these lines.
        digest: of the marks of these items, each one with those before it.
        counts: whatever is to be told of them at the end.
    """

    items: int = 0
    n_bytes: int = 0
    digest: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)


def chained(digest: str, mark: str) -> str:
    """The digest of all marks so far and one more."""
    return hashing.digest(f"{digest} {mark}".encode(errors="surrogateescape")).hex()


class ResumableFile:
    """A file in the making; see `resumed`, which opens one."""

    def __init__(self, path: Path, file: FileIO, job: Mapping[str, Any], progress: Progress) -> None:
        self.path, self.job = path, job
        self.progress = progress
        self._file = file
        self._recorded: Progress | None = None
        self._synced = time.monotonic()

    def append(self, text: str, marks: Iterable[str], counts: Mapping[str, int]) -> None:
        """Add the lines of the next items, whose marks are given, and the counts as they are now.

        Raises:
            UserError: the file can't be written.
        """
        data, digest, items = text.encode(errors="backslashreplace"), self.progress.digest, self.progress.items
        for mark in marks:
            digest, items = chained(digest, mark), items + 1
        with explained(self.path.parent):
            _write(self._file, data)
        n_bytes = self.progress.n_bytes + len(data)
        self.progress = Progress(items=items, n_bytes=n_bytes, digest=digest, counts=dict(counts))
        if time.monotonic() - self._synced >= SYNC_EVERY:
            self.record()

    def record(self) -> None:
        """Put everything so far on the disk, then how far that is, where that is not on it already."""
        progress = self.progress
        if progress is self._recorded:
            return
        told = {"format": _FORMAT, "version": _VERSION, "job": dict(self.job), "progress": asdict(progress)}
        temporary = _record_path(self.path).with_suffix(".new")
        with explained(self.path.parent):
            os.fsync(self._file.fileno())
            with temporary.open("wb") as file:
                file.write(json.dumps(told).encode())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(_record_path(self.path))
            sync_folder(self.path.parent)
        self._recorded, self._synced = progress, time.monotonic()

    def publish(self) -> None:
        """Give the file its name; nothing is appended any more."""
        with explained(self.path.parent):
            os.fsync(self._file.fileno())
            _partial_path(self.path).replace(self.path)
            sync_folder(self.path.parent)
            _record_path(self.path).unlink(missing_ok=True)
        self._recorded = self.progress


def refuse_finished(path: Path, *, anew: bool) -> None:
    """Raise UserError where there is such a file already, unless it is to be made anew."""
    if path.exists() and not anew:
        raise UserError(f"{path}: there is such a file already; remove it, name another, or give --restart")


@contextmanager
def resumed(path: Path, job: Mapping[str, Any], *, header: str, anew: bool = False) -> Iterator[ResumableFile]:
    """A file to append to: the one that was broken off, or a new one; how far it came is recorded when the block ends.

    Args:
        path: of the finished file.
        job: what decides the lines of an item, by names that a user knows, JSON.
        header: that a new file begins with.
        anew: whether to begin anew, over a finished or a broken-off file.

    Raises:
        UserError: there is such a file already, another process makes it, it was begun by another job, or the folder
            can't be written.
    """
    refuse_finished(path, anew=anew)
    with ExitStack() as held:
        with explained(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(_partial_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            file = held.enter_context(FileIO(fd, "r+"))
            if not lock_now(fd, _partial_path(path)):
                raise UserError(f"{path}: another process is making it; wait for it, or name another file")
            if path.exists() and not anew and not os.fstat(fd).st_size:
                _partial_path(path).unlink()
            refuse_finished(path, anew=anew)  # by another process, between the first question and the lock
            progress = None if anew else _progress(path, job)
            if progress is None or progress.n_bytes > os.fstat(fd).st_size:
                progress = Progress(n_bytes=len(header.encode()))
                _write(file, header.encode())
            file.truncate(progress.n_bytes)
            file.seek(progress.n_bytes)
        made = ResumableFile(path, file, job, progress)
        made.record()
        try:
            yield made
        finally:
            made.record()


def check_unchanged(made: ResumableFile, marks: Iterator[str]) -> None:
    """Take as many marks as the file has items, and refuse others than those it was made of.

    Raises:
        UserError: they are not.
    """
    digest, count = "", 0
    while count < made.progress.items and (mark := next(marks, None)) is not None:
        digest, count = chained(digest, mark), count + 1
    if (digest, count) != (made.progress.digest, made.progress.items):
        raise UserError(
            f"{made.path}: its first {made.progress.items:,} images are not those that are given now, or were changed "
            "since; give the same ones, or begin anew with --restart"
        )


def _write(file: FileIO, data: bytes) -> None:
    """All of it, however many calls the kernel takes it in."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _partial_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _record_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial.json")


def _progress(path: Path, job: Mapping[str, Any]) -> Progress | None:
    """What is recorded of a file that was broken off; None where there is nothing that could be gone on with."""
    try:
        told = read_object(_record_path(path))
        progress = Progress(**told["progress"])
        theirs = dict(told["job"])
        if (told["format"], told["version"]) != (_FORMAT, _VERSION):
            return None
        if not all(type(number) is int and number >= 0 for number in (progress.items, progress.n_bytes)):
            return None
    except (OSError, KeyError, TypeError, ValueError):
        return None
    if differing := [name for name in {**theirs, **job} if theirs.get(name) != job.get(name)]:
        raise UserError(
            f"{path}: it was begun with another {', '.join(differing)} ({progress.items:,} images are done); give the "
            "same, or begin anew with --restart"
        )
    return progress
