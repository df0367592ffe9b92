"""Lock a cache's path, so that one process on this host builds it at a time.

The locks are the kernel's (flock): a process that dies, or a machine that restarts, holds none. Two are taken, one
beside the cache and one in the temporary folder of this host, so that a file system without locks does with the latter.
Names bear the host's, so that nobody waits for a host that is gone: across hosts builders work privately. The ranks of
one job, on however many hosts, write to one file, and each holds it shared: no later job writes to it before they end.
"""

from __future__ import annotations

import fcntl
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path

from featcache.common import hashing
from featcache.common.disk import explained
from featcache.common.errors import CacheError


@cache
def host() -> str:
    """This host, in 8 hex digits."""
    machine = b""
    with suppress(OSError):
        machine = Path("/etc/machine-id").read_bytes().strip()
    return hashing.digest(platform.node().encode() + b"\n" + machine).hex()[:8]


def partial_path(path: Path) -> Path:
    """Where this host builds a cache."""
    return path.with_name(f".{path.name}.{host()}.partial")


def aside_paths(path: Path) -> list[Path]:
    """Files in the making that this host did not go on with: their rows serve the one that it begins anew."""
    return sorted(path.parent.glob(f".{path.name}.{host()}.before*.partial"))


def unused_aside_path(path: Path) -> Path:
    """A name for one more of them."""
    names = (path.with_name(f".{path.name}.{host()}.before{number}.partial") for number in count(1))
    return next(name for name in names if not name.exists())


@contextmanager
def building(path: Path, *, on_wait: Callable[[str], None] = lambda holder: None) -> Iterator[None]:
    """Keep other builders of the same cache on this host out for the while; wait for one that is at work.

    Args:
        path: of the finished cache.
        on_wait: called once, with the holder's process id where it is known, where another process is at work.
    """
    with ExitStack() as held:
        with explained(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            for lock in _locks(path):
                held.enter_context(_locked(lock, on_wait))
        yield


def is_building(path: Path) -> bool:
    """Whether a process on this host is building this cache now."""
    for lock in _locks(path):
        with suppress(FileNotFoundError), lock.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            except OSError:
                continue  # a file system without locks
    return False


def is_open_for_writing(path: Path) -> bool:
    """Whether a process has a file open for writing, as far as this system tells.

    HDF5's library locks what it writes, on whichever host. On Linux the kernel also knows of writers without a lock,
    such as a copy under way: it grants a lease for reading only if there are none.
    """
    with suppress(OSError), open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if _is_held(lambda: fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)):
            return True
        if sys.platform == "linux":
            fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)  # SIGIO, without it, would end this process
            return _is_held(lambda: fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK))
    return False


def _is_held(question: Callable[[], object]) -> bool:
    try:
        question()
    except BlockingIOError:
        return True
    except OSError:
        pass  # a file system without locks, or another user's file
    return False


def take_over(fd: int, *, on_wait: Callable[[str], None] = lambda holder: None) -> None:
    """Wait until nobody writes to an open file in the making any more, then hold it as one of its writers.

    A rank may outlive its job: without this it could go on writing while a later job goes on with the file.
    """
    _lock_alone(fd, on_wait, holder=lambda: "")
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_SH)


def join(fd: int, path: Path) -> None:
    """Hold an open file in the making as one more of its writers. Raises CacheError where a later job has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CacheError(f"{path}: another job goes on with this file") from error
    except OSError:
        pass  # a file system without locks


def lock_now(fd: int, path: Path) -> bool:
    """Lock an open file for this process alone, until it is closed; False if another has it, or it is not at ``path``.

    The latter is so if the one that had it deleted or renamed it. On a file system without locks nobody else has it.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks
    return _is_at(fd, path)


def _locks(path: Path) -> list[Path]:
    """Beside the cache, and in the temporary folder where that can be had."""
    locks = [path.with_name(f".{path.name}.{host()}.lock")]
    folder = Path(tempfile.gettempdir(), f"featcache-{os.getuid()}")
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid == os.getuid():
            locks.append(folder / f"{hashing.digest(os.fsencode(path.resolve())).hex()}.{host()}.lock")
    return locks


@contextmanager
def _locked(lock: Path, on_wait: Callable[[str], None]) -> Iterator[None]:
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _lock_alone(fd, on_wait, holder=lambda: os.pread(fd, 20, 0).decode(errors="replace").strip())
        if not _is_at(fd, lock):  # deleted while we waited: others lock another file by now
            with _locked(lock, on_wait):
                yield
            return
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def _lock_alone(fd: int, on_wait: Callable[[str], None], *, holder: Callable[[], str]) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        on_wait(holder())
        fcntl.flock(fd, fcntl.LOCK_EX)
    except OSError:
        pass  # a file system without locks


def _is_at(fd: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(fd), path.stat())
    return False
