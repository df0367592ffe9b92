"""Find, create or join the unfinished file that a build writes to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.build.allocation import create
from featcache.build.plan import Plan
from featcache.build.reuse import KnownRows, Wanted
from featcache.cache.cache_file import Cache
from featcache.common.disk import explained
from featcache.common.errors import CacheError
from featcache.common.locks import partial_path, unused_aside_path

#: Other machines or libraries that a build went on with, of which the last ones are told.
MAX_RESUMED_ON = 20


@dataclass(frozen=True)
class Begun:
    """A file in the making.

    Attributes:
        partial: its path.
        provenance: JSON, what is recorded beside it.
        known: rows that other files hold.
        note: what the user may want to know of how the build began; empty where there is nothing.
    """

    partial: Path
    provenance: dict[str, Any]
    known: KnownRows
    note: str = ""


def begin(path: Path, plan: Plan, provenance: Mapping[str, Any], wanted: Wanted) -> Begun:
    """Find the file in the making of a cache, or make one; see ``CacheBuilder.create_or_resume``.

    Raises:
        UserError: the folder can't be written, or the disk has too little space.
        CacheError: there is a file in the making that may be sound, but can't be opened.
    """
    partial = partial_path(path)
    with explained(path.parent):
        for leftover in path.parent.glob(f"{partial.name}.*"):
            leftover.unlink(missing_ok=True)  # of a process that died while it made the file
        if not partial.exists():
            return _made(partial, plan, provenance, wanted)
        try:
            return _found(partial, provenance, wanted)
        except CacheError as reason:
            if reason.may_be_sound:
                raise
            note = f"{partial} is begun anew: {reason}"
        aside = unused_aside_path(path)
        os.replace(partial, aside)  # its rows may serve as another cache's do
        try:
            return _made(partial, plan, provenance, wanted, note)
        except BaseException:
            os.replace(aside, partial)
            raise


def join(partial: Path, provenance: Mapping[str, Any], wanted: Wanted) -> Begun:
    """Take part in what the first rank has begun.

    Args:
        partial: the path of its file.
        provenance: this rank's own; tells its device.
        wanted: with the canary of this rank's stack.

    Raises:
        CacheError: this rank makes other features than the file holds.
    """
    cache = Cache.open_unsealed(partial)
    if (drift := wanted.drift(cache)).is_drift:
        hardware = provenance["hardware"]
        device = f"{hardware.get('device')}, {hardware.get('name')}"
        raise CacheError(f"its device ({device}) makes other features than the first rank's: {drift}")
    told = cache.provenance
    return Begun(partial, told, KnownRows.reopen(partial.parent, told["reused"], wanted))


def _made(partial: Path, plan: Plan, provenance: Mapping[str, Any], wanted: Wanted, note: str = "") -> Begun:
    known = KnownRows.find(partial.parent, plan.content, wanted)
    origins = {name: known.origins(rows.content) for name, rows in plan.splits.items()}
    recorded = {**provenance, "reused": known.told(), "sealed": False}
    create(partial, plan, recorded, wanted.canary, origins)
    return Begun(partial, recorded, known, note)


def _found(partial: Path, provenance: Mapping[str, Any], wanted: Wanted) -> Begun:
    """Raises CacheError where the file is not what this build would go on with."""
    cache = Cache.open_unsealed(partial)
    told = cache.provenance
    for key in ("fingerprint", "batch"):
        if told[key] != provenance[key]:
            raise CacheError(f"its {key} is {told[key]}, and now it is {provenance[key]}")
    if (drift := wanted.drift(cache)).is_drift:
        raise CacheError(str(drift))
    here = {key: provenance[key] for key in ("hardware", "threads", "versions")}
    before = told.get("resumed_on", [])
    if here not in before and any(told[key] != value for key, value in here.items()):
        told = {**told, "resumed_on": [*before, here][-MAX_RESUMED_ON:]}
    return Begun(partial, told, KnownRows.reopen(partial.parent, told["reused"], wanted))
