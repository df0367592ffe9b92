"""``bin/cache resume``: finish interrupted caches by the ``bin/embed`` that each of them records.

A file may come from a stranger: its command line goes through embed's own parser, is shown before it runs, and nothing
else than embed is ever run.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from featcache.cache.cache_file import Cache
from featcache.commands import embed as embed_command
from featcache.commands.console import Console
from featcache.common.errors import CacheError, UserError
from featcache.maintenance.recorded_command import recorded_embed
from featcache.maintenance.unfinished_files import WorkFile, find_work_files, work_file

_BY_HAND = "run the same bin/embed as before to go on"


def resume(file: Path | None, cache_dir: Path, console: Console) -> dict[str, Any]:
    """Go on with one file in the making, or with all of this host's in a folder; gives the JSON object.

    Raises:
        CacheError: some can't be gone on with; after all were tried.
    """
    told = []
    for partial in _chosen(file, cache_dir, console):
        try:
            told.append({"file": str(partial.path), **_go_on(partial, console)})
        except UserError as error:
            console.note(f"NOT RESUMED: {error}")
            told.append({"file": str(partial.path), "error": str(error)})
    failed = [each for each in told if "error" in each]
    if failed:
        console.result({"resumed": told})
        raise CacheError(
            f"{len(failed)} of {len(told)} files in the making could not be gone on with: {_first(failed)}"
        )
    return {"resumed": told}


def _first(failed: list[dict[str, Any]]) -> str:
    return str(failed[0]["error"]) if len(failed) == 1 else "see above"


def _chosen(file: Path | None, cache_dir: Path, console: Console) -> list[WorkFile]:
    """One file for each cache that is to be finished."""
    if file is not None:
        found = work_file(file)
        if not file.is_file() or found is None or found.kind != "partial":
            raise CacheError(f"{file}: no file in the making; bin/cache ls lists them, they end in .partial")
        return [found]
    partials = [each for each in find_work_files(cache_dir) if each.kind == "partial"]
    chosen: dict[Path, WorkFile] = {}
    for each in partials:
        if each.is_in_use:
            console.note(f"{each.path}: a process is building it; left to that")
        elif not each.is_ours:
            console.note(f"{each.path}: of another host; name it to go on with it here, its rows are reused")
        elif each.cache not in chosen or ".before" in chosen[each.cache].path.name:
            chosen[each.cache] = each
    if not chosen:
        console.note(f"{cache_dir}: nothing to go on with")
    return list(chosen.values())


def _go_on(partial: WorkFile, console: Console) -> dict[str, Any]:
    cache_dir = partial.path.parent.resolve()
    recorded = recorded_embed(Cache.open_unsealed(partial.path), by_hand=_BY_HAND, more=("--cache-dir", str(cache_dir)))
    console.note(f"in {recorded.folder}: {recorded}")
    arguments = argparse.Namespace(**{**vars(recorded.arguments), "json": console.json_wanted})
    with _working_in(recorded.folder):
        result = embed_command.embed(arguments, console, recorded.argv)
    if Path(result["cache"]).name != partial.cache.name:
        console.note(
            f"that made {result['cache']}, not {partial.cache.name}: images or settings changed since; bin/cache gc "
            "--older-than 0 removes what was begun"
        )
    return {"command": ["embed", *recorded.argv], "folder": str(recorded.folder), "result": result}


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    """Change the working folder for the while; not safe beside other threads (``contextlib.chdir`` came with 3.11)."""
    before = Path.cwd()
    try:
        os.chdir(folder)
    except OSError as error:
        raise CacheError(f"{folder}: cannot be entered ({error.strerror}); {_BY_HAND}") from error
    try:
        yield
    finally:
        os.chdir(before)
