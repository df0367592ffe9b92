"""Features in, row by row; a sealed cache file out, or one in the making that the next build goes on with.

The file is created whole under another name, its space reserved (``featcache.skeleton``), then written block by block
(``featcache.block_writer``). Sealing is one more write and an atomic rename.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache import acceptance, layout
from featcache.block_writer import BlockWriter
from featcache.cache import Cache, read_provenance, stored_data_sets, stored_root_digest
from featcache.cached_split import CachedSplit
from featcache.canary import Canary
from featcache.disk import explained, sync_folder
from featcache.errors import CacheError
from featcache.locks import aside_paths, partial_path, unused_aside_path
from featcache.plan import Plan
from featcache.reuse import KnownRows, Wanted
from featcache.skeleton import create
from featcache.stored import CacheFile
from featcache.structure import read_structure

Array = NDArray[Any]

#: Other machines or libraries that a build went on with, of which the last ones are told.
MAX_RESUMED_ON = 20
#: Passes over a file that give up on blocks that never match.
MAX_LOOKS = 10


@dataclass
class _OpenBlock:
    """A block whose rows are not all there yet."""

    features: Array
    status: NDArray[np.uint8]
    missing: set[int]


class CacheBuilder:
    """A cache file in the making; ``create_or_resume`` gives one.

    Attributes:
        known: rows that other files hold.
        done: rows that are there: in blocks that count, copied, or embedded since.
        note: what the user may want to know of how the build began; empty where there is nothing.
    """

    def __init__(self, path: Path, partial: Path, plan: Plan, known: KnownRows, note: str = "") -> None:
        self.path = path
        self.partial = partial
        self.plan = plan
        self.known = known
        self.note = note
        self.done = 0
        self._looks = 0
        file = CacheFile(partial, in_the_making=True)
        self._structure = read_structure(partial)
        self.provenance = read_provenance(file, self._structure)
        self._stored = stored_data_sets(file, self._structure)
        self._splits = self._opened_splits()
        self._origins = {name: self._stored[name]["origin"].read() for name in plan.splits}
        self._pending: dict[str, set[int]] = {}
        self._open: dict[tuple[str, int], _OpenBlock] = {}
        self._writer = BlockWriter(partial, self._structure.provenance, self._stored)

    @classmethod
    def create_or_resume(cls, path: Path, plan: Plan, provenance: Mapping[str, Any], canary: Canary) -> CacheBuilder:
        """Open the file in the making of the same cache, or make one; rows that other caches hold are not embedded.

        Args:
            path: of the finished cache.
            plan: what it will hold.
            provenance: JSON recorded beside it; a file in the making is gone on with only where ``batch`` is the same.
            canary: of today's stack; a file in the making that it does not agree with is replaced.

        Raises:
            UserError: the folder can't be written, or the disk has too little space.
        """
        partial = partial_path(path)
        wanted = Wanted(plan.encoder_fingerprint, canary, str(plan.encoder["precision"]))
        with explained(path.parent):
            for leftover in path.parent.glob(f"{partial.name}.*"):
                leftover.unlink(missing_ok=True)  # of a process that died while it made the file
            if not partial.exists():
                return cls._created(path, partial, plan, provenance, wanted)
            try:
                return cls._resumed(path, partial, plan, provenance, wanted)
            except CacheError as reason:
                note = f"{partial} is begun anew: {reason}"
            aside = unused_aside_path(path)
            os.replace(partial, aside)  # its rows may serve as another cache's do
            try:
                return cls._created(path, partial, plan, provenance, wanted, note)
            except BaseException:
                os.replace(aside, partial)
                raise

    @classmethod
    def _created(
        cls, path: Path, partial: Path, plan: Plan, provenance: Mapping[str, Any], wanted: Wanted, note: str = ""
    ) -> CacheBuilder:
        content = np.concatenate([rows.content for rows in plan.splits.values()])
        known = KnownRows.find(path.parent, content, wanted)
        origins = {name: known.origins(rows.content) for name, rows in plan.splits.items()}
        create(partial, plan, {**provenance, "reused": known.told(), "sealed": False}, wanted.canary, origins)
        return cls(path, partial, plan, known, note)

    @classmethod
    def _resumed(
        cls, path: Path, partial: Path, plan: Plan, provenance: Mapping[str, Any], wanted: Wanted
    ) -> CacheBuilder:
        """Raises CacheError where the file is not what this build would go on with."""
        cache = Cache.open_unsealed(partial)
        told = cache.provenance
        for key in ("fingerprint", "batch"):
            if told[key] != provenance[key]:
                raise CacheError(f"its {key} is {told[key]}, and now it is {provenance[key]}")
        if (drift := wanted.drift(cache)).is_drift:
            raise CacheError(str(drift))
        builder = cls(path, partial, plan, KnownRows.reopen(path.parent, told["reused"], wanted))
        here = {key: provenance[key] for key in ("hardware", "threads", "versions")}
        before = builder.provenance.get("resumed_on", [])
        if here not in before and any(builder.provenance[key] != value for key, value in here.items()):
            builder.provenance["resumed_on"] = [*before, here][-MAX_RESUMED_ON:]
        return builder

    def _opened_splits(self) -> dict[str, CachedSplit]:
        """The splits as they lie in the file now; what they read of it once, they keep."""
        sizes = {"block_rows": self.plan.block_rows, "n_classes": len(self.plan.class_names)}
        return {name: CachedSplit(name, self._stored[name], **sizes) for name in self.plan.splits}

    def look(self) -> bool:
        """Compare every block with its checksum: whether some have none, or do not match theirs."""
        self._writer.commit()
        self._open.clear()
        self._looks += 1
        if self._looks > MAX_LOOKS:
            raise CacheError(f"{self.partial}: blocks do not read back as they were written; the disk may be failing")
        self._splits = self._opened_splits()
        for name, split in self._splits.items():
            done = split.checksums["features"].any(axis=1)
            wrong = {damage.start // split.block_rows for damage in split.damages(np.flatnonzero(done).tolist())}
            wrong |= {block for block in np.flatnonzero(done).tolist() if not self._is_as_planned(split, block)}
            self._pending[name] = {*np.flatnonzero(~done).tolist(), *wrong}
        pending = sum(
            stop - start
            for name, blocks in self._pending.items()
            for start, stop in map(self._splits[name].rows_of, blocks)
        )
        self.done = sum(map(len, self._splits.values())) - pending
        return pending > 0

    def copy(self) -> Iterator[None]:
        """Write the pending blocks whose rows all come from other files, one at each step."""
        for name, blocks in self._pending.items():
            for block in sorted(blocks):
                start, stop = self._splits[name].rows_of(block)
                if self._origins[name][start:stop].all() and self._opened(name, block):
                    self._finish(name, block)
                    self._writer.commit_now_and_then()
                    yield

    def groups(self, rows: int) -> list[tuple[str, NDArray[np.int64]]]:
        """The rows to embed, as many together as given; those in a pending block, and those in their group.

        A group is the same however often a build was interrupted, so that its features are, to the bit.
        """
        groups = []
        for name, blocks in self._pending.items():
            todo = np.flatnonzero(self._origins[name] == 0)
            for first in range(0, len(todo), rows):
                group = todo[first : first + rows]
                if not blocks.isdisjoint((group // self.plan.block_rows).tolist()):
                    groups.append((name, group))
        return groups

    def put(
        self, name: str, rows: NDArray[np.int64], features: Array, status: NDArray[np.uint8], errors: Mapping[str, str]
    ) -> int:
        """Take embedded rows; a block is written when it is complete.

        Args:
            name: of the split.
            rows: their indices.
            features: of these rows, in the type that the cache stores.
            status: of these rows, as in ``layout``.
            errors: why rows have no features, by id.

        Returns:
            How many of the rows were pending.
        """
        taken = 0
        self._writer.add_errors(name, errors)
        for position, row in enumerate(rows.tolist()):
            block = row // self.plan.block_rows
            opened = self._opened(name, block) if block in self._pending[name] else None
            if opened is None:
                continue
            place = row - block * self.plan.block_rows
            opened.features[place], opened.status[place] = features[position], status[position]
            opened.missing.discard(row)
            self.done += 1
            taken += 1
            if not opened.missing:
                self._finish(name, block)
        self._writer.commit_now_and_then()
        return taken

    def _is_as_planned(self, split: CachedSplit, block: int) -> bool:
        """Whether the checksums of a block are those of the rows that it should hold."""
        told = split.checksums[block]
        planned = self._planned(split.name, *split.rows_of(block))
        return all(told[name].tobytes() == layout.checksum(values) for name, values in planned.items())

    def _planned(self, name: str, start: int, stop: int) -> dict[str, Array]:
        """What is known of rows without their images."""
        rows, stored = self.plan.splits[name], self._stored[name]
        known = {"labels": rows.labels, "ids": rows.encoded_ids, "content": rows.content}
        return {part: np.ascontiguousarray(values[start:stop], stored[part].dtype) for part, values in known.items()}

    def _opened(self, name: str, block: int) -> _OpenBlock | None:
        """A block with the rows from other files in it; None where one of these is gone: a later pass embeds them."""
        if (name, block) in self._open:
            return self._open[name, block]
        start, stop = self._splits[name].rows_of(block)
        stored, origin = self._stored[name]["features"], self._origins[name][start:stop]
        features = np.zeros((stop - start, *stored.shape[1:]), stored.dtype)
        for source in np.unique(origin[origin > 0]).tolist():
            here = np.flatnonzero(origin == source)
            copied = self.known.read(source, self.plan.splits[name].content[start + here])
            if copied is None:
                origin[here] = 0  # a view: the split's origins too
                self._writer.write_origin(name, start, origin)
                self._pending[name].discard(block)
                return None
            features[here] = copied
            self.done += len(here)
        opened = _OpenBlock(
            features, np.zeros(stop - start, np.uint8), set((start + np.flatnonzero(origin == 0)).tolist())
        )
        self._open[name, block] = opened
        return opened

    def _finish(self, name: str, block: int) -> None:
        opened, (start, stop) = self._open.pop((name, block)), self._splits[name].rows_of(block)
        values = {"features": opened.features, "status": opened.status, "origin": self._origins[name][start:stop]}
        self._writer.write_block(name, block, start, {**values, **self._planned(name, start, stop)})
        self._pending[name].discard(block)

    def seal(self, *, seconds: float) -> Path:
        """Publish the finished file.

        Args:
            seconds: that this build took; recorded with those of builds before it.

        Returns:
            The path of the sealed cache.
        """
        assert not any(self._pending.values())  # the last look has compared every block with its checksum
        for name, split in self._splits.items():
            failed = np.flatnonzero(split.status != layout.OK).tolist()
            self._writer.tidy_errors(name, [self.plan.splits[name].encoded_ids[row] for row in failed])
        sealed = {**self.provenance, "sealed": True, "created": _now(), "cost": self._cost(seconds)}
        sealed["root_digest"] = stored_root_digest(self._structure, sealed, self._stored)
        with explained(self.path.parent):
            self._writer.seal(sealed)
            os.replace(self.partial, self.path)
            sync_folder(self.path.parent)
        acceptance.accept(CacheFile(self.path), sealed["root_digest"])
        for aside in aside_paths(self.path):
            aside.unlink(missing_ok=True)
        return self.path

    def close(self, *, seconds: float) -> None:
        """Leave the file for a later build, unless it is sealed; ``seconds`` as for ``seal``."""
        if self._writer.is_open:
            self._writer.leave({**self.provenance, "cost": self._cost(seconds)})

    def _cost(self, seconds: float) -> float:
        return round(float(self.provenance.get("cost", 0)) + seconds, 3)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{time.time_ns() // 1000 % 1_000_000:06d}Z"
