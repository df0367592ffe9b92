"""Build a cache file from features that come row by row; an unfinished one is resumed by the next build.

The file is created whole under another name, its space reserved (``featcache.build.allocation``), then written block by
block (``featcache.build.block_writer``). Sealing is one more write and an atomic rename. Of several ranks the first
makes, checks and seals the file, and each writes its share of the blocks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.build import resuming
from featcache.build.block_assignment import OthersRows, share_of
from featcache.build.block_writer import BlockWriter
from featcache.build.pending_block import OpenBlock
from featcache.build.plan import Plan
from featcache.build.preflight import finished_cache
from featcache.build.resuming import Begun
from featcache.build.reuse import Wanted
from featcache.cache import file_format, sandbox
from featcache.cache.cache_file import stored_data_sets, stored_root_digest
from featcache.cache.canary import Canary
from featcache.cache.hdf5_structure import read_structure
from featcache.cache.raw_reads import CacheFile
from featcache.cache.split import CachedSplit
from featcache.common import hashing
from featcache.common.disk import explained, sync_folder
from featcache.common.errors import CacheError
from featcache.common.locks import aside_paths
from featcache.common.ranks import ALONE, Ranks

Array = NDArray[Any]

#: Passes over a file that give up on blocks that never match.
MAX_LOOKS = 10
#: What a row that is embedded costs, where one that is copied costs 1.
EMBEDDED_WEIGHT = 1000


class CacheBuilder:
    """A cache file in the making; ``create_or_resume`` gives one.

    Attributes:
        known: rows that other files hold.
        note: what the user may want to know of how the build began; empty where there is nothing.
    """

    def __init__(self, path: Path, plan: Plan, begun: Begun, *, ranks: Ranks, on_wait: Callable[[str], None]) -> None:
        self.path = path
        self.partial = begun.partial
        self.plan = plan
        self.known = begun.known
        self.note = begun.note
        self.provenance = begun.provenance
        self._ranks = ranks
        self._done = 0
        self._looks = 0
        self._file = CacheFile(self.partial, in_the_making=True)
        self._structure = read_structure(self.partial)
        self._stored = stored_data_sets(self._file, self._structure)
        self._splits = self._opened_splits()
        self._origins: dict[str, NDArray[np.uint8]] = {}
        self._pending: dict[str, set[int]] = {}
        self._others = OthersRows(self._splits, {})
        self._open: dict[tuple[str, int], OpenBlock] = {}
        self._writer = BlockWriter(self.partial, self._structure.provenance, self._stored, ranks=ranks, on_wait=on_wait)

    @classmethod
    def create_or_resume(
        cls,
        path: Path,
        plan: Plan,
        provenance: Mapping[str, Any],
        canary: Canary,
        *,
        ranks: Ranks = ALONE,
        on_wait: Callable[[str], None] = lambda holder: None,
    ) -> CacheBuilder:
        """Open the file in the making of the same cache, or make one; rows that other caches hold are not embedded.

        Args:
            path: of the finished cache.
            plan: what it will hold.
            provenance: JSON recorded beside it; a file in the making is gone on with only where ``batch`` is the same.
            canary: of today's stack; a file in the making that it does not agree with is replaced.
            ranks: who builds it together. All of them call this, ``look`` and ``close``, and the first ``seal``.
            on_wait: called once where a rank of an earlier job still writes to the file.

        Raises:
            UserError: the folder can't be written, or the disk has too little space.
            CacheError: this rank makes other features than the first.
        """
        wanted = Wanted(plan.encoder_fingerprint, canary, str(plan.encoder["precision"]))
        if ranks.is_first:
            with explained(path.parent):
                begun = resuming.begin(path, plan, provenance, wanted)
                builder = cls(path, plan, begun, ranks=ranks, on_wait=on_wait)
            ranks.share(builder.partial.name)
            return builder
        begun = resuming.join(path.with_name(ranks.share(None)), provenance, wanted)
        with explained(path.parent):
            return cls(path, plan, begun, ranks=ranks, on_wait=on_wait)

    @property
    def done(self) -> int:
        """Rows that are there: in blocks that count, copied, or embedded since; for the first rank those of all."""
        return self._done + self._others.done

    def _opened_splits(self) -> dict[str, CachedSplit]:
        """The splits as they lie in the file now; what they read of it once, they keep."""
        rows, names = self.plan.block_rows, self.plan.class_names
        return {
            name: CachedSplit(name, self._stored[name], block_rows=rows, class_names=names) for name in self.plan.splits
        }

    def look(self) -> bool:
        """Compare every block with its checksum: whether some have none, or do not match theirs.

        The first rank compares; each takes a share of what it finds. Nobody writes before that: to hear of its share, a
        rank needs a first one that is alive, holds the lock on building, and has seen that rank join.
        """
        self._writer.commit()
        self._writer.exchange_errors()
        self._open.clear()
        self._file.close()  # opened anew, a network file system shows what others have written
        self._splits = self._opened_splits()
        pending = self._ranks.share(self._missing() if self._ranks.is_first else None)
        self._origins = {name: self._stored[name]["origin"].read() for name in self.plan.splits}
        self._take(pending)
        return any(pending.values())

    def _missing(self) -> dict[str, list[int]]:
        """The blocks that do not count, by split."""
        self._looks += 1
        if self._looks > MAX_LOOKS:
            raise CacheError(f"{self.partial}: blocks do not read back as they were written; the disk may be failing")
        missing = {}
        for name, split in self._splits.items():
            done = split.checksums["features"].any(axis=1)
            wrong = {damage.start // split.block_rows for damage in split.damages(np.flatnonzero(done).tolist())}
            wrong |= {block for block in np.flatnonzero(done).tolist() if not self._is_as_planned(split, block)}
            missing[name] = sorted({*np.flatnonzero(~done).tolist(), *wrong})
        return missing

    def _take(self, missing: Mapping[str, list[int]]) -> None:
        """Make this rank's share of these blocks the ones that it is to write."""
        weights = {}
        for name, origins in self._origins.items():
            starts = np.arange(0, len(origins), self.plan.block_rows)
            weights[name] = np.add.reduceat(np.where(origins == 0, EMBEDDED_WEIGHT, 1), starts)
        self._pending = share_of(missing, weights, self._ranks)
        others = {name: sorted(set(blocks) - self._pending[name]) for name, blocks in missing.items()}
        self._others = OthersRows(self._splits, others)
        self._done = sum(map(len, self._splits.values())) - sum(
            stop - start for name, blocks in missing.items() for start, stop in map(self._splits[name].rows_of, blocks)
        )

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
            opened.put(row, features[position], int(status[position]))
            self._done += 1
            taken += 1
            if not opened.missing:
                self._finish(name, block)
        self._writer.commit_now_and_then()
        return taken

    def _is_as_planned(self, split: CachedSplit, block: int) -> bool:
        """Whether the checksums of a block are those of the rows that it should hold."""
        told = split.checksums[block]
        planned = self._planned(split.name, *split.rows_of(block))
        return all(told[name].tobytes() == hashing.checksum(values) for name, values in planned.items())

    def _planned(self, name: str, start: int, stop: int) -> dict[str, Array]:
        """What is known of rows without their images."""
        rows, stored = self.plan.splits[name], self._stored[name]
        known = {"labels": rows.labels, "ids": rows.encoded_ids, "content": rows.content}
        return {part: np.ascontiguousarray(values[start:stop], stored[part].dtype) for part, values in known.items()}

    def _opened(self, name: str, block: int) -> OpenBlock | None:
        """A block with the rows from other files in it; None where one of these is gone: a later pass embeds them."""
        if (name, block) in self._open:
            return self._open[name, block]
        start, stop = self._splits[name].rows_of(block)
        stored, origin = self._stored[name]["features"], self._origins[name][start:stop]
        features = np.zeros((stop - start, *stored.shape[1:]), stored.dtype)
        opened = OpenBlock.begin(start, features, origin, self.plan.splits[name].content[start:stop], self.known)
        if opened is None:
            self._writer.write_origin(name, start, origin)
            self._pending[name].discard(block)
            return None
        self._done += opened.copied
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

        Raises:
            CacheError: a file of its name must not be replaced, see ``preflight.finished_cache``.
        """
        finished_cache(self.path, self.plan)
        assert not any(self._pending.values())  # the last look has compared every block with its checksum
        for name, split in self._splits.items():
            failed = np.flatnonzero(split.status != file_format.OK).tolist()
            self._writer.tidy_errors(name, [self.plan.splits[name].encoded_ids[row] for row in failed])
        sealed = {**self.provenance, "sealed": True, "created": _now(), "cost": self._cost(seconds)}
        sealed["root_digest"] = stored_root_digest(self._structure, sealed, self._stored)
        with explained(self.path.parent):
            self._writer.seal(sealed)
            os.replace(self.partial, self.path)
            sync_folder(self.path.parent)
        sandbox.accept(CacheFile(self.path), sealed["root_digest"])
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
