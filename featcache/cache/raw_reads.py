"""Read data sets of a cache file by position or mapped, without HDF5's library.

Positioned reads, since a map turns a read error or a file that was cut off meanwhile into the death of the process.
"""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.cache import file_format
from featcache.common.errors import CacheError, CacheFault, corrupt_error

Array = NDArray[Any]


class CacheFile:
    """One file, opened when first read. It can be sent to other processes, which open it anew if it is still the same.

    Attributes:
        path: of the file.
        identity: device, inode, size, and times of modification and of change.
        in_the_making: whether somebody may be writing to it.
    """

    def __init__(self, path: Path, *, in_the_making: bool = False) -> None:
        self.path = path
        self.identity = _identity(path.stat())
        self.in_the_making = in_the_making
        self._fd: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**{name: vars(self)[name] for name in ("path", "identity", "in_the_making")}, "_fd": None}

    @property
    def size(self) -> int:
        return self.identity[2]

    def _descriptor(self) -> int:
        if self._fd is None:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            same = 3 if self.in_the_making else 4  # a new name changes the time of change alone
            if _identity(os.fstat(fd))[:same] != self.identity[:same]:
                os.close(fd)
                raise CacheError("was replaced since it was opened; open it again", path=self.path, kind="unreadable")
            self._fd = fd
            self._finalizer = weakref.finalize(self, os.close, fd)
        return self._fd

    def close(self) -> None:
        """Hold no descriptor until something is read again."""
        if self._fd is not None:
            self._fd = None
            self._finalizer()

    def read_into(self, values: Array, offset: int) -> None:
        """Fill a contiguous array from the bytes at an offset. Raises CacheError where they can't be read."""
        left = memoryview(values.reshape(-1).view(np.uint8))
        try:
            while left:
                count = os.preadv(self._descriptor(), [left], offset)
                if count == 0:
                    raise corrupt_error(self.path, f"cut off at byte {offset:,}; embed again")
                left, offset = left[count:], offset + count
        except OSError as error:
            kind: CacheFault = "absent" if isinstance(error, FileNotFoundError) else "unreadable"
            reason = f"cannot be read at byte {offset:,} ({error.strerror})"
            raise CacheError(reason, path=self.path, kind=kind) from error

    def map(self, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...]) -> Array:
        """A read-only map of a data set."""
        with os.fdopen(os.dup(self._descriptor()), "rb") as file:
            return np.memmap(file, dtype=dtype, mode="r", offset=offset, shape=shape)


def _identity(status: os.stat_result) -> tuple[int, int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@dataclass(frozen=True)
class Stored:
    """A data set: where it lies in its file, its type and its shape."""

    file: CacheFile
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        return file_format.n_bytes(self.dtype, self.shape)

    @property
    def row_bytes(self) -> int:
        return file_format.n_bytes(self.dtype, self.shape[1:])

    def map(self) -> Array:
        """All of it, mapped read-only."""
        return self.file.map(self.dtype, self.offset, self.shape)

    def read(self) -> Array:
        """All of it, in memory."""
        values = np.empty(self.shape, self.dtype)
        self.read_into(values, 0)
        return values

    def read_into(self, values: Array, row: int) -> None:
        """Fill a contiguous array with the rows that begin at ``row``."""
        self.file.read_into(values, self.offset + row * self.row_bytes)
