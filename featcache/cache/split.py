"""Read the rows of one split; every block is compared with its checksum first."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featcache.cache import file_format
from featcache.cache.damage import Damage
from featcache.cache.raw_reads import Stored
from featcache.common import hashing
from featcache.common.errors import corrupt_error
from featcache.tables.subset import row_numbers

if TYPE_CHECKING:
    import pandas

    from featcache.cache.torch_dataset import CachedDataset

Array = NDArray[Any]

#: All of a split is read by up to so many threads, each of which has this many bytes to read at least.
MAX_THREADS, THREAD_BYTES = 4, 1 << 24


class CachedSplit:
    """One split of a cache. Safe to send to other processes and to read in many at once.

    Attributes:
        name: ``train``, ``val`` or ``test``.
        class_names: by label.
        row_shape: of one row's features: (D,) or (C, H, W), with views (V, D) or (V, C, H, W).
        features: (N, *row_shape) float16 or float32, mapped, not checked; ``read`` and ``load`` check.
        labels: (N,) int64, -1 where unlabelled.
        ids: (N,) relative paths or indices, unique in the split.
        content: (N, 16) uint8 digests of the source bytes.
        status: (N,) uint8, 0 where the row has features.
        origin: (N,) uint8, 0 where embedded for this file, else from which of the provenance's ``reused``, from 1 on.
        errors: by id, why a row has none (the first 1,024 of them).
    """

    def __init__(
        self, name: str, stored: Mapping[str, Stored], *, block_rows: int, class_names: tuple[str, ...]
    ) -> None:
        self.name = name
        self.stored = stored
        self.block_rows = block_rows
        self.class_names = class_names
        self.row_shape = stored["features"].shape[1:]

    def __getstate__(self) -> dict[str, Any]:
        return {key: vars(self)[key] for key in ("name", "stored", "block_rows", "class_names", "row_shape")}

    def __len__(self) -> int:
        return self.stored["labels"].shape[0]

    @cached_property
    def checksums(self) -> Array:
        return self.stored["checksums"].read()

    @cached_property
    def features(self) -> Array:
        return self.stored["features"].map()

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        labels = self._whole("labels")
        if len(labels) and not (labels.min() >= -1 and labels.max() < len(self.class_names)):
            told = f"/{self.name}/labels go from {labels.min()} to {labels.max()}"
            raise corrupt_error(self.stored["labels"].file.path, f"{told}; there are {len(self.class_names)} classes")
        return labels

    @cached_property
    def ids(self) -> tuple[str, ...]:
        path = self.stored["ids"].file.path
        try:
            ids = tuple(name.decode() for name in self._whole("ids").tolist())
        except UnicodeDecodeError as error:
            raise corrupt_error(path, f"/{self.name}/ids are not UTF-8") from error
        for name in ids:
            if not name or name.startswith("/") or ".." in name.split("/"):
                raise corrupt_error(
                    path, f"/{self.name}/ids holds {name!r}; expected a path below the data set's folder"
                )
        if len(set(ids)) < len(ids):
            raise corrupt_error(path, f"/{self.name}/ids are not unique")
        return ids

    @cached_property
    def content(self) -> NDArray[np.uint8]:
        return self._whole("content")

    @cached_property
    def status(self) -> NDArray[np.uint8]:
        return self._whole("status")

    @cached_property
    def origin(self) -> NDArray[np.uint8]:
        return self._whole("origin")

    @cached_property
    def errors(self) -> dict[str, str]:
        records = self.stored["errors"].read()
        return {
            record["id"].decode(errors="replace"): record["message"].decode(errors="ignore")
            for record in records
            if record["id"]
        }

    def usable(self) -> NDArray[np.int64]:
        """Indices of the rows that have features and a label."""
        return np.flatnonzero((self.status == file_format.OK) & (self.labels >= 0))

    def torch_dataset(self, rows: NDArray[np.int64] | NDArray[np.bool_] | None = None) -> CachedDataset:
        """The usable rows, or those given as ``read`` takes them, as a torch Dataset of (features, label)."""
        from featcache.cache.torch_dataset import CachedDataset

        return CachedDataset(self, rows)

    def to_pandas(self, *, features: bool = False) -> pandas.DataFrame:
        """All rows as a DataFrame by id: label, class, status, content, and the features, if wanted, NaN where none."""
        from featcache.cache.frames import data_frame

        return data_frame(self, features=features)

    def load(
        self, rows: NDArray[np.int64] | NDArray[np.bool_] | None = None, *, check: bool = True
    ) -> NDArray[np.float32]:
        """Like ``read``, in float32."""
        return self._gather(rows, np.dtype(np.float32), check=check)

    def read(self, rows: NDArray[np.int64] | NDArray[np.bool_] | None = None, *, check: bool = True) -> Array:
        """Features of some rows.

        Args:
            rows: indices in any order, or (N,) booleans; None takes all rows.
            check: whether to compare the blocks that hold them with their checksums.

        Returns:
            (len(rows), *row_shape) in memory, in the type of the file.

        Raises:
            IndexError: there is no such row.
            TypeError: rows are neither integers nor booleans.
            CacheError: a block that holds one of the rows does not match its checksum.
        """
        return self._gather(rows, self.stored["features"].dtype, check=check)

    def damages(self, wanted: Iterable[int] | None = None) -> Iterator[Damage]:
        """The blocks, of all or of those wanted, that do not match their checksums; reads all of them."""
        wanted = range(len(self.checksums)) if wanted is None else list(wanted)
        for data_set in file_format.CHECKED:
            for block, values in self.blocks(data_set, wanted, check=False):
                if not self._matches(data_set, block, values):
                    yield Damage(self.name, data_set, *self.rows_of(block))

    def rows_of(self, block: int) -> tuple[int, int]:
        """The first row of a block and the one after its last."""
        return block * self.block_rows, min((block + 1) * self.block_rows, len(self))

    def blocks(
        self, data_set: str, wanted: Iterable[int] | None = None, *, into: Array | None = None, check: bool = True
    ) -> Iterator[tuple[int, Array]]:
        """The number and the values of each block, checked before it is handed out.

        Args:
            data_set: its name.
            wanted: numbers of blocks; None takes all.
            into: an array for all rows that takes the values; without it each block replaces the one before.
            check: whether to compare with the checksums.
        """
        stored = self.stored[data_set]
        shape = (min(self.block_rows, len(self)), *stored.shape[1:])
        buffer = np.empty(shape, stored.dtype) if into is None else into
        for block in range(len(self.checksums)) if wanted is None else wanted:
            start, stop = self.rows_of(block)
            values = buffer[: stop - start] if into is None else buffer[start:stop]
            self._read_block(data_set, block, values, check=check)
            yield block, values

    def _read_block(self, data_set: str, block: int, values: Array, *, check: bool) -> None:
        stored, (start, stop) = self.stored[data_set], self.rows_of(block)
        stored.read_into(values, start)
        if check and not self._matches(data_set, block, values):
            damage = Damage(self.name, data_set, start, stop)
            raise corrupt_error(stored.file.path, f"{damage}; delete the file and embed again")

    def _matches(self, data_set: str, block: int, values: Array) -> bool:
        told = self._told[data_set]
        return hashing.checksum(values) == told[block * hashing.DIGEST_SIZE : (block + 1) * hashing.DIGEST_SIZE]

    @cached_property
    def _told(self) -> dict[str, bytes]:
        """The checksums of each data set, one after the other."""
        return {name: np.ascontiguousarray(self.checksums[name]).tobytes() for name in file_format.CHECKED}

    def _whole(self, data_set: str) -> Array:
        values = np.empty(self.stored[data_set].shape, self.stored[data_set].dtype)
        for _ in self.blocks(data_set, into=values):
            pass
        values.flags.writeable = False
        return values

    def _gather(
        self, rows: NDArray[np.int64] | NDArray[np.bool_] | None, dtype: np.dtype[Any], *, check: bool
    ) -> Array:
        if rows is None:
            return self._gather_all(dtype, check=check)
        rows = row_numbers(rows, len(self), of=self.name)
        gathered = np.empty((len(rows), *self.row_shape), dtype)
        if self.block_rows == 1 and dtype == self.stored["features"].dtype:
            for place, row in enumerate(rows.tolist()):
                self._read_block("features", row, gathered[place : place + 1], check=check)
            return gathered
        order = np.argsort(rows, kind="stable")
        wanted, first = np.unique(rows[order] // self.block_rows, return_index=True)
        places = np.split(order, first[1:])
        for (block, values), here in zip(self.blocks("features", wanted.tolist(), check=check), places, strict=False):
            gathered[here] = values[rows[here] - block * self.block_rows]
        return gathered

    def _gather_all(self, dtype: np.dtype[Any], *, check: bool) -> Array:
        gathered = np.empty((len(self), *self.row_shape), dtype)
        same = dtype == self.stored["features"].dtype

        def fill(wanted: range) -> None:
            for block, values in self.blocks("features", wanted, into=gathered if same else None, check=check):
                if not same:
                    gathered[slice(*self.rows_of(block))] = values

        n_blocks = len(self.checksums)
        n_threads = min(MAX_THREADS, os.cpu_count() or 1, 1 + self.stored["features"].n_bytes // THREAD_BYTES)
        bounds = [n_blocks * i // n_threads for i in range(n_threads + 1)]
        with ThreadPoolExecutor(n_threads) as pool:  # reading, checking and converting all let other threads run
            list(pool.map(fill, map(range, bounds, bounds[1:])))
        return gathered
