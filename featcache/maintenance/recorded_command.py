"""Parse the ``bin/embed`` that a cache records, by the command's own parser; nothing is run."""

from __future__ import annotations

import argparse
import io
import shlex
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from featcache.cache.cache_file import Cache
from featcache.commands import embed as embed_command
from featcache.common.errors import CacheError
from featcache.common.printable import printable


@dataclass(frozen=True)
class RecordedEmbed:
    """The command line that a cache records, checked, and the folder that it was given in."""

    argv: tuple[str, ...]
    folder: Path
    arguments: argparse.Namespace

    def __str__(self) -> str:
        return shlex.join(["embed", *self.argv])


def recorded_embed(cache: Cache, *, by_hand: str, more: tuple[str, ...] = ()) -> RecordedEmbed:
    """The ``bin/embed`` that a cache records.

    Args:
        cache: finished or in the making; it may come from a stranger.
        by_hand: what the user can do where none is recorded.
        more: flags to add.

    Raises:
        CacheError: nothing that can be run is recorded, or the folder that it was given in is gone.
    """
    command, folder = cache.provenance["command"], cache.provenance.get("working_folder")
    if not command or not isinstance(folder, str):
        raise CacheError(f"{cache.path}: does not say how it was asked for; {by_hand}")
    if not all(isinstance(word, str) and "\0" not in word for word in (*command, folder)) or command[0] != "embed":
        raise CacheError(f"{cache.path}: records a command line that is no bin/embed; {by_hand}")
    full = (*command[1:], *more)
    said = io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(said):
            arguments = embed_command.embed_parser().parse_args(full)
    except SystemExit as error:
        reason = printable(" ".join(said.getvalue().split())[:200])
        raise CacheError(
            f"{cache.path}: records a command line that bin/embed does not take ({reason}); {by_hand}"
        ) from error
    recorded = RecordedEmbed(full, Path(folder), arguments)
    if not recorded.folder.is_absolute() or not recorded.folder.is_dir():
        raise CacheError(f"{cache.path}: the folder {folder} that it was begun in is gone; run by hand: {recorded}")
    return recorded
