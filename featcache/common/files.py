"""Open regular files only: a FIFO, a device or a folder at a path is refused, so that nothing hangs.

With `one_line`, for what such a file says of itself.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from featcache.common.printable import printable

_KINDS = {
    stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}  # fmt: skip


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file, or what a link to one leads to, for reading.

    Raises:
        OSError: there is none, it may not be read, or it is no regular file; ``strerror`` says which.
    """
    _check(path.stat())
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _check(os.fstat(fd))
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def _check(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something")
        raise OSError(errno.EINVAL, f"{kind}, not a regular file")


def size_of(file: BinaryIO) -> int:
    """The bytes of an open file."""
    return os.fstat(file.fileno()).st_size


def one_line(told: object) -> str:
    """The beginning of what a file or an error says, fit for a message: one line, printable, 200 characters at most."""
    return printable(" ".join(str(told)[:1000].split()))[:200]
