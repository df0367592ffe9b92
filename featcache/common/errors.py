"""What the library raises when the caller's input, not the library, is at fault.

The message is one line: what came, what was expected, how to mend it. Commands print it as it stands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

#: What is wrong with a cache file:
#:     corrupt       a checksum or digest does not match, or our own reading of the file refuses it
#:     unfinished    it was never sealed
#:     old format    an older featcache wrote it
#:     newer format  a newer featcache wrote it
#:     foreign       another program wrote it, or added to it
#:     unreadable    it could not be read now: the disk, memory, a limit, or HDF5's library failed
#:     in use        another process has it open for writing
#:     absent        there is no such file
#:     other         nothing that a file is to blame for
CacheFault = Literal[
    "corrupt", "unfinished", "old format", "newer format", "foreign", "unreadable", "in use", "absent", "other"
]
CACHE_FAULTS: tuple[CacheFault, ...] = get_args(CacheFault)


class UserError(Exception):
    """The world is not as asked for: a missing file, a damaged cache, a refused download. Commands exit with 1."""


class UsageError(UserError):
    """The request itself makes no sense: an unknown name, a fraction of zero. Commands exit with 2."""


class CacheError(UserError):
    """A cache file is absent, damaged, unfinished, or holds something else than what was asked for.

    Attributes:
        reason: the message without the path.
        path: of the file; None if the error is about no single one.
        kind: what is wrong. Whoever decides what happens to the file decides by this, never by the message.
    """

    def __init__(self, reason: str, *, path: Path | None = None, kind: CacheFault = "other") -> None:
        super().__init__(reason if path is None else f"{path}: {reason}")
        self.reason = reason
        self.path = path
        self.kind = kind

    @property
    def is_damage(self) -> bool:
        """Whether the file is of no use and stays so: it may be replaced or deleted."""
        return self.kind in ("corrupt", "unfinished", "old format")

    @property
    def may_be_sound(self) -> bool:
        """Whether the file may hold what is of use to somebody: it must stay."""
        return self.kind in ("newer format", "foreign", "unreadable", "in use")


class RankEndedError(UserError):
    """Another of the processes that work together has ended. Its text says how to go on, where that is known."""


def corrupt_error(path: Path, reason: str) -> CacheError:
    """The error for a file that our own reading of it refuses."""
    return CacheError(reason, path=path, kind="corrupt")


def missing_extra(package: str, extra: str) -> UserError:
    """The error for an optional dependency that is not installed; names the extra that brings it."""
    return UserError(f"{package} is not installed: pip install 'featcache[{extra}]'")


def one_of(kind: str, given: str, known: list[str]) -> UsageError:
    """The error for an unknown name; offers the closest known ones, or all where they are few."""
    import difflib

    near = difflib.get_close_matches(given, known, n=3, cutoff=0.6)
    if near:
        return UsageError(f"unknown {kind} {given!r}: did you mean {' or '.join(near)}?")
    shown = ", ".join(known[:12]) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
    return UsageError(f"unknown {kind} {given!r}: expected one of {shown}")
