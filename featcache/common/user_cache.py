"""What this user's featcache remembers between commands: files it accepted, digests of images, what engines cost.

All of it lies below ``$XDG_CACHE_HOME/featcache`` (``~/.cache/featcache``), can be deleted at any time, and is done
without where it can't be written.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from featcache.common import hashing

T = TypeVar("T")

_ENTRY = np.dtype([("key", "V16"), ("content", "V16")])
#: Entries that are kept for one folder beside those of its images.
_MAX_OTHERS = 1_000_000
#: Files that are handed to a pool of threads at once.
_AT_ONCE = 4096
#: A file that changed so recently may change again without its time showing it.
_RACY_NS = 2_000_000_000


def folder() -> Path:
    """Where everything remembered lies. Raises RuntimeError where this user has no home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "featcache")


def recall(name: str) -> dict[str, Any]:
    """The JSON object remembered under a name; empty where there is none."""
    with suppress(OSError, RuntimeError, ValueError):
        value = json.loads((folder() / "notes" / f"{name}.json").read_text())
        return value if isinstance(value, dict) else {}
    return {}


def remember(name: str, value: Mapping[str, Any]) -> None:
    """Keep a JSON object under a name that can be a file's."""
    with suppress(OSError, RuntimeError):
        _replace(folder() / "notes" / f"{name}.json", json.dumps(value).encode())


def remembered_digests(root: Path, names: Sequence[str], digest: Callable[[str], bytes]) -> NDArray[np.uint8]:
    """The content digests of files, those of unchanged files from memory.

    A file counts as unchanged while its name, size, times of modification and of change, device and inode are the same.

    Args:
        root: the folder.
        names: relative paths of files in it.
        digest: reads a file and gives its digest of 16 bytes.

    Returns:
        (N, 16) uint8.
    """
    known = _load(root)
    now = time.time_ns()
    with ThreadPoolExecutor() as pool:
        marks = [mark for part in _parts(names) for mark in pool.map(lambda name: _mark(root, name, now), part)]
        keys = np.frombuffer(b"".join(key for key, _ in marks), "V16")
        places = np.minimum(np.searchsorted(known["key"], keys), max(0, len(known) - 1))
        found = known["key"][places] == keys if len(known) else np.zeros(len(keys), bool)
        contents = np.zeros(len(names), "V16")
        contents[found] = known["content"][places[found]]
        missing = np.flatnonzero(~found).tolist()
        read = [content for part in _parts(missing) for content in pool.map(digest, [names[i] for i in part])]
    if missing:
        contents[missing] = np.frombuffer(b"".join(read), "V16")
        settled = np.array([is_settled for _, is_settled in marks])
        settled &= contents != np.zeros(1, "V16")  # what could not be read may be readable next time
        new = np.zeros(int(settled.sum()), _ENTRY)
        new["key"], new["content"] = keys[settled], contents[settled]
        _save(root, new, keys)
    return contents.view(np.uint8).reshape(len(names), hashing.DIGEST_SIZE)


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Some thousands at a time: what a pool is given at once, it holds at once."""
    return (items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE))


def _mark(root: Path, name: str, now: int) -> tuple[bytes, bool]:
    """A digest of what tells whether a file is the same, and whether its times can be relied on."""
    try:
        status = os.stat(os.path.join(root, name))  # noqa: PTH116, PTH118  a third of pathlib's time, for every image
    except OSError:
        return bytes(hashing.DIGEST_SIZE), False
    times = (status.st_mtime_ns, status.st_ctime_ns)
    told = f"{status.st_dev},{status.st_ino},{status.st_size},{times},{name}"
    return hashing.digest(os.fsencode(told)), max(times) < now - _RACY_NS


def _path(root: Path) -> Path:
    return folder() / "digests" / hashing.digest(os.fsencode(root.resolve())).hex()


def _load(root: Path) -> NDArray[np.void]:
    with suppress(OSError, RuntimeError, ValueError):
        data = _path(root).read_bytes()
        if hashing.digest(data[hashing.DIGEST_SIZE :]) == data[: hashing.DIGEST_SIZE]:
            return np.frombuffer(data, _ENTRY, offset=hashing.DIGEST_SIZE)
    return np.zeros(0, _ENTRY)


def _save(root: Path, new: NDArray[np.void], keys: NDArray[np.void]) -> None:
    """Keep new entries in place of those with these keys, and all others: other processes may have added theirs."""
    with suppress(OSError, RuntimeError), _alone(_path(root)):
        known = _load(root)
        others = known[~np.isin(known["key"], keys)][:_MAX_OTHERS]
        entries = np.concatenate([new, others])
        data = entries[np.argsort(entries["key"], kind="stable")].tobytes()
        _replace(_path(root), hashing.digest(data) + data)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes from replacing a file meanwhile, where the file system has locks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.parent.with_suffix(".lock").open("ab") as lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    os.replace(file.name, path)
