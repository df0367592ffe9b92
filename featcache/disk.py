"""What builders of files share: locks, syncing, and the file system's complaints in one line."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from featcache.errors import UserError


def sync_folder(folder: Path) -> None:
    """Put a rename in this folder on the disk, where the file system can sync a folder."""
    with suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextmanager
def removed_on_failure(path: Path) -> Iterator[None]:
    """Remove a half-made file where making it fails."""
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn what the file system says of a folder into a UserError of one line."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            free = shutil.disk_usage(folder).free
            message = f"{folder}: no space left ({free:,} bytes free); free some, or name another folder"
        else:
            reason = error.strerror or str(error)
            message = f"{folder}: cannot be written ({reason}); name one that can"
        raise UserError(message) from error


@contextmanager
def building(path: Path, *, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Keep other builders of the same file on this host out for the while; wait for one that is at work.

    The lock is the kernel's (flock), so a dead process holds none. A file system without locks goes without.

    Args:
        path: of the finished cache.
        on_wait: called once where another process is at work.
    """
    import fcntl

    with explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError:
            pass
        yield
    finally:
        os.close(fd)
