"""List the paths of given images, of those in given folders and of those in a list, in a fixed order."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from featcache.common.errors import UsageError, UserError
from featcache.sources.folders import ImageLister, LeftOut

#: What stands for the list of paths.
LIST = "-"
#: A list of more bytes goes to a temporary file.
_IN_MEMORY = 1 << 24
_AT_ONCE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Paths of images, in the order given, folders walked in the order of their names.

    A folder is walked anew each time, so that no list of all paths is ever in memory.

    Attributes:
        given: images, folders, and ``-`` for the list.
        listed: what ``-`` stands for: paths, a line each, or each ended by a zero byte as ``find -print0`` does.
    """

    given: tuple[str, ...]
    listed: BinaryIO

    def paths(self, left_out: LeftOut | None = None) -> Iterator[str]:
        """All of them; what folders hold besides images is counted in ``left_out``."""
        left_out = LeftOut() if left_out is None else left_out
        for name in self.given:
            if name == LIST:
                yield from self._listed()
            elif Path(name).is_dir():
                for path in ImageLister([Path(name)]).images(Path(name), left_out):
                    yield str(path)
            else:
                yield name

    def counted(self) -> tuple[int, LeftOut]:
        """How many there are, and what folders hold besides. Raises UserError if there are none."""
        left_out = LeftOut()
        count = sum(1 for _ in self.paths(left_out))
        if not count:
            raise UserError(
                f"{' '.join(self.given)}: no images found; expected JPEG, PNG, WebP, BMP or TIFF files, or folders of "
                "them"
            )
        return count, left_out

    def _listed(self) -> Iterator[str]:
        self.listed.seek(0)
        end, left = None, b""
        while chunk := self.listed.read(_AT_ONCE):
            end = end or (b"\0" if b"\0" in chunk else b"\n")
            *names, left = (left + chunk).split(end)
            yield from _named(names, end)
        yield from _named([left], end or b"\n")


def _named(names: Sequence[bytes], end: bytes) -> Iterator[str]:
    """Names as the file system has them, empty ones left out."""
    for name in names:
        if whole := (name.rstrip(b"\r") if end == b"\n" else name):
            yield os.fsdecode(whole)


@contextmanager
def inputs_of(given: Sequence[str], stdin: BinaryIO) -> Iterator[Inputs]:
    """Check what was given, and read the list to its end, where there is one; it is kept while the block lasts.

    Args:
        given: as in `Inputs`.
        stdin: where ``-`` reads from.

    Raises:
        UserError: a path is not there.
        UsageError: ``-`` is given twice.
    """
    for name in given:
        if name != LIST and not os.path.lexists(name):
            raise UserError(f"{name}: no such file or folder; expected images, folders of images, or - for a list")
    if list(given).count(LIST) > 1:
        raise UsageError("-: the list on stdin can be read once; give it once")
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as listed:
        if LIST in given:
            shutil.copyfileobj(stdin, listed)
        yield Inputs(given=tuple(given), listed=cast("BinaryIO", listed))
