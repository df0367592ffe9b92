"""Write files and folders whole (under another name, sync, rename), and explain what the file system refuses."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from featcache.common.errors import UserError

#: What the kernel says if there is something of that name: a folder, a file, or a link.
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR)
#: What file systems without hard links say.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def sync_folder(folder: Path) -> None:
    """Put a rename in this folder on the disk, where the file system can sync a folder."""
    with suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def sync_file(path: Path) -> None:
    """Put a file's content on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def free_path(folder: Path, stem: str, suffix: str = "", *, taken: Collection[str] = ()) -> Path:
    """``<stem>-<number><suffix>`` in a folder, with the first number from 1 on whose name is free and not ``taken``."""
    names = (f"{stem}-{number}{suffix}" for number in count(1))
    return next(folder / name for name in names if name not in taken and not os.path.lexists(folder / name))


def publish_folder(folder: Path, write: Callable[[Path], object], *, numbered: bool = False) -> Path:
    """Let ``write`` fill a folder under another name, sync it, and rename it.

    Args:
        folder: what it is to be called; its parents are made.
        write: called with the folder to write to, which is removed if it raises.
        numbered: whether the name ends in a number; see `give_name`.

    Returns:
        The folder as it is called now; see `give_name`.

    Raises:
        UserError: it can't be written, or renamed.
    """
    temporary = folder.with_name(f".unpublished-{secrets.token_hex(4)}")  # as short whatever the name, of one process
    with explained(folder.parent):
        temporary.mkdir(parents=True)
        try:
            write(temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        for path in temporary.rglob("*"):
            sync_folder(path) if path.is_dir() else sync_file(path)
        sync_folder(temporary)
    return give_name(temporary, folder, numbered=numbered)


def give_name(temporary: Path, path: Path, *, numbered: bool = False, replace: bool = False) -> Path:
    """Rename a finished file or folder, without replacing anything but an empty folder; it is never removed.

    Args:
        temporary: its name until now, in the same folder.
        path: the name that it is to have. If another process has taken that meanwhile, a free number is added.
        numbered: whether that name is ``<stem>-<number>``, so that another number is taken instead.
        replace: whether a file may be replaced, by a file.

    Returns:
        The name that it has now.

    Raises:
        UserError: it can't be renamed; the message says where it is.
    """
    suffix = "" if temporary.is_dir() else path.suffix
    stem = path.name.removesuffix(suffix)
    stem = stem.rpartition("-")[0] if numbered else stem
    taken: list[str] = []
    while True:
        try:
            if replace or temporary.is_dir():
                temporary.rename(path)  # the kernel refuses to put a folder in the place of what is not an empty one
            else:
                _rename_to_new(temporary, path)
        except OSError as error:
            if error.errno not in _TAKEN:
                reason = error.strerror or str(error)
                raise UserError(
                    f"{path}: cannot be written ({reason}); it is finished and kept as {temporary}"
                ) from error
            taken.append(path.name)
            path = free_path(path.parent, stem, suffix, taken=taken)
        else:
            sync_folder(path.parent)
            return path


def other_name_note(path: Path, given: Path) -> str:
    """What to tell the user if `give_name` gave another name than ``path``."""
    return f"WARNING: another process has made {path} meanwhile; this one's work is kept as {given}"


def _rename_to_new(temporary: Path, path: Path) -> None:
    """Rename a file. Raises FileExistsError if there is something at ``path``, which a plain rename would replace."""
    try:
        os.link(temporary, path)
        temporary.unlink()
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from error
        temporary.rename(path)


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
