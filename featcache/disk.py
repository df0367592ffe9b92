"""What builders of files share: syncing, cleaning up, and the file system's complaints in one line."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
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
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free, reason = shutil.disk_usage(folder).free, error.strerror
            message = f"{folder}: no space left ({reason}; {free:,} bytes free); free some, or name another folder"
        else:
            reason = error.strerror or str(error)
            message = f"{folder}: cannot be written ({reason}); name one that can"
        raise UserError(message) from error
