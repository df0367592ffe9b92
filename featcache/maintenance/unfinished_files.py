"""Find the files that builders keep beside caches: unfinished caches, leftovers, locks."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from featcache.common import locks

Kind = Literal["partial", "leftover", "lock"]

#: As ``featcache.common.locks``, ``builder`` and ``allocation`` name them.
_NAME = re.compile(
    r"\.(?P<cache>.+\.h5)\.(?P<host>[0-9a-f]{8})\."
    r"(?:(?P<partial>(?:before[0-9]*\.)?partial)|(?P<leftover>partial\.[0-9]+)|(?P<lock>lock))",
    re.DOTALL,
)


@dataclass(frozen=True)
class WorkFile:
    """A file of a builder.

    Attributes:
        path: of the file.
        cache: the path that the finished cache will have.
        host: that it belongs to, in 8 hex digits.
        kind: ``partial`` is a cache in the making, ``leftover`` one that was never whole.
    """

    path: Path
    cache: Path
    host: str
    kind: Kind

    @property
    def is_ours(self) -> bool:
        """Whether it belongs to this host."""
        return self.host == locks.host()

    @property
    def is_in_use(self) -> bool:
        """Whether a process of this host is building that cache now; of other hosts nobody here can tell."""
        return self.is_ours and locks.is_building(self.cache)


def find_work_files(folder: Path) -> list[WorkFile]:
    """The builders' files in a folder, by name; links are passed over."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
    return [found for name in names if (found := work_file(folder / name))]


def work_file(path: Path) -> WorkFile | None:
    """What a file's name says of it; None where it is no builder's."""
    match = _NAME.fullmatch(path.name)
    if not match:
        return None
    kind: Kind = "lock" if match["lock"] else "leftover" if match["leftover"] else "partial"
    return WorkFile(path, path.with_name(match["cache"]), match["host"], kind)
