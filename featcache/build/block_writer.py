"""Write checksummed blocks to an unfinished cache; a committed block survives a crash at any moment.

Only ``pwrite`` at the data sets' offsets touches the file, so that HDF5's own structure cannot be torn. A block counts
once its rows and then its checksums are on the disk. Several ranks may write to one file, each its own blocks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.build.allocation import padded, write_at
from featcache.cache import file_format
from featcache.cache.raw_reads import Stored
from featcache.common import hashing
from featcache.common.disk import explained
from featcache.common.errors import UserError
from featcache.common.locks import join, take_over
from featcache.common.ranks import Ranks

Array = NDArray[Any]

#: Seconds between two commits: what a kill can cost.
COMMIT_SECONDS = 1.0


class BlockWriter:
    """Writes to one file.

    Args:
        path: of the file.
        provenance_offset: where its provenance lies.
        stored: where its data sets lie, by split and name.
        ranks: who writes to it together; the first waits until nobody else does, and must be there before the others.
        on_wait: called once where it has to wait.
    """

    def __init__(
        self,
        path: Path,
        provenance_offset: int,
        stored: Mapping[str, Mapping[str, Stored]],
        *,
        ranks: Ranks,
        on_wait: Callable[[str], None],
    ) -> None:
        self._folder = path.parent
        self._stored = stored
        self._provenance_offset = provenance_offset
        self._ranks = ranks
        self._uncommitted: list[tuple[str, int, Array]] = []
        self._messages: dict[str, dict[str, str]] = {}
        self._is_dirty = False
        self._committed_at = time.monotonic()
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if ranks.is_first:
                take_over(self._fd, on_wait=on_wait)
            else:
                join(self._fd, path)
        except BaseException:
            self._close()
            raise

    @property
    def is_open(self) -> bool:
        return self._fd >= 0

    def write_block(self, split: str, block: int, start: int, values: Mapping[str, Array]) -> None:
        """Write all data sets of a block that begins at row ``start``; it counts after the next commit."""
        checksums = np.zeros(1, file_format.CHECKSUMS)
        with explained(self._folder):
            for name, part in values.items():
                exact = self._write_rows(split, name, start, part)
                checksums[name] = np.frombuffer(hashing.checksum(exact), np.uint8)
        self._uncommitted.append((split, block, checksums))

    def write_origin(self, split: str, start: int, origin: NDArray[np.uint8]) -> None:
        with explained(self._folder):
            self._write_rows(split, "origin", start, origin)

    def add_errors(self, split: str, errors: Mapping[str, str]) -> None:
        """Record why rows have no features, by id, while there is room: each rank has slots of its own."""
        if not errors:
            return
        stored = self._stored[split]["errors"]
        known = stored.read()
        free = np.flatnonzero(known["id"] == b"")
        slots = iter(free[free % self._ranks.size == self._ranks.rank].tolist())
        told = set(known["id"].tolist())
        messages = self._messages.setdefault(split, {})
        with explained(self._folder):
            for row_id, message in errors.items():
                text = message.encode()[: file_format.MESSAGE_SIZE].decode(errors="ignore")
                if len(messages) < file_format.MAX_ERRORS:
                    messages[row_id] = text
                slot = next(slots, None) if row_id.encode() not in told else None
                if slot is not None:
                    record = np.array([(row_id.encode(), text.encode())], dtype=stored.dtype)
                    self._write_rows(split, "errors", slot, record)

    def exchange_errors(self) -> None:
        """Hand all ranks' messages to the first, which tidies: another may have found no slot for some of its own."""
        gathered = self._ranks.gather(self._messages)
        self._messages = {}
        for split in self._stored if self._ranks.is_first else ():
            each = [told.get(split, {}).items() for told in gathered]
            self._messages[split] = dict(islice(chain(*each), file_format.MAX_ERRORS))

    def tidy_errors(self, split: str, failed: Sequence[bytes]) -> None:
        """Leave the records of these ids, in this order: a row may have failed once and not again."""
        stored = self._stored[split]["errors"]
        told = {record["id"]: record["message"] for record in stored.read() if record["id"]}
        told |= {row_id.encode(): message.encode() for row_id, message in self._messages.get(split, {}).items()}
        kept = [(row_id, told[row_id]) for row_id in failed if row_id in told][: stored.shape[0]]
        records = np.zeros(stored.shape, stored.dtype)
        records[: len(kept)] = kept
        with explained(self._folder):
            self._write_rows(split, "errors", 0, records)

    def commit_now_and_then(self) -> None:
        """Commit where the last one is a while ago."""
        if time.monotonic() - self._committed_at > COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Make what was written count: rows to the disk, then their checksums."""
        if self._is_dirty:
            with explained(self._folder):
                os.fsync(self._fd)
                for split, block, checksums in self._uncommitted:
                    self._write_rows(split, "checksums", block, checksums)
                if self._uncommitted:
                    os.fsync(self._fd)
            self._uncommitted.clear()
            self._is_dirty = False
        self._committed_at = time.monotonic()

    def seal(self, provenance: Mapping[str, Any]) -> None:
        """Write the last word; from here on nothing writes to the file."""
        with explained(self._folder):
            write_at(self._fd, self._provenance_offset, padded(provenance))
            os.fsync(self._fd)
            self._close()

    def leave(self, provenance: Mapping[str, Any]) -> None:
        """Leave the file for a later build, with what could be written; its provenance is the first rank's to write."""
        with suppress(OSError, UserError):
            self.commit()
            if self._ranks.is_first:
                write_at(self._fd, self._provenance_offset, padded(provenance))
        self._close()

    def _close(self) -> None:
        os.close(self._fd)
        self._fd = -1

    def _write_rows(self, split: str, name: str, row: int, values: Array) -> Array:
        """Write rows of a data set; gives them as they lie in the file."""
        stored = self._stored[split][name]
        exact = np.ascontiguousarray(values, dtype=stored.dtype)
        assert exact.shape[1:] == stored.shape[1:]
        self._is_dirty = True
        write_at(self._fd, stored.offset + row * stored.row_bytes, exact.reshape(-1).view(np.uint8).data)
        return exact
