"""Features in, block by block; a sealed cache file out, or a partial one that the next build goes on with.

The file is created whole under another name, closed, and its space reserved. From then on only ``pwrite`` at the data
sets' offsets touches it, so that HDF5's own structure cannot be torn. A block counts once its rows and then its
checksums are on the disk. Sealing is one more ``pwrite`` and an atomic rename.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache import layout
from featcache.cache import Stored, read_attributes, stored_data_sets, stored_root_digest
from featcache.disk import explained, removed_on_failure, sync_folder
from featcache.errors import CacheError, UserError
from featcache.plan import Plan

Array = NDArray[Any]


class CacheBuilder:
    """A cache file in the making; ``create_or_resume`` gives one."""

    def __init__(self, path: Path, partial: Path, plan: Plan) -> None:
        import h5py

        self.path = path
        self.partial = partial
        self.plan = plan
        with h5py.File(partial, "r", locking=False) as file:
            self._attributes = read_attributes(file)
            self.provenance: dict[str, Any] = json.loads(file["provenance"][()])
            self._provenance_offset = int(file["provenance"].id.get_offset())
            self._stored = {name: stored_data_sets(partial, file[name]) for name in plan.splits}
        self._fd = os.open(partial, os.O_RDWR)

    @classmethod
    def create_or_resume(cls, path: Path, plan: Plan, provenance: Mapping[str, Any]) -> CacheBuilder:
        """Open the partial file of the same cache, or make one.

        Args:
            path: of the finished cache.
            plan: what it will hold.
            provenance: JSON recorded beside it; a partial file is gone on with only where ``batch`` is the same.

        Raises:
            UserError: the folder can't be written, or the disk has too little space.
        """
        partial = path.with_name(f".{path.name}.partial")
        with explained(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            if partial.exists():
                builder = cls._resumed(path, partial, plan, provenance)
                if builder:
                    return builder
            _create(partial, plan, {**provenance, "sealed": False})
        return cls(path, partial, plan)

    @classmethod
    def _resumed(cls, path: Path, partial: Path, plan: Plan, provenance: Mapping[str, Any]) -> CacheBuilder | None:
        try:
            builder = cls(path, partial, plan)
        except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, CacheError):
            return None  # not a file that a builder left; it is replaced
        if all(builder.provenance.get(key) == provenance[key] for key in ("fingerprint", "batch")):
            here = {key: provenance[key] for key in ("hardware", "threads", "versions")}
            if any(builder.provenance[key] != value for key, value in here.items()):
                builder.provenance["resumed_on"] = [*builder.provenance.get("resumed_on", ()), here]
            return builder
        os.close(builder._fd)
        return None

    def pending(self, split: str) -> list[tuple[int, int]]:
        """The blocks without features, as first row and the one after the last."""
        stored = self._stored[split]
        checksums = stored["checksums"].map()
        left = []
        for block, (start, stop) in enumerate(layout.blocks(len(self.plan.splits[split].ids), self.plan.block_rows)):
            told = checksums[block]
            if not told["features"].any() or any(
                layout.digest(stored[name].map()[start:stop]) != told[name].tobytes() for name in layout.CHECKED
            ):
                left.append((start, stop))
        return left

    def write(
        self, split: str, start: int, features: Array, status: NDArray[np.uint8], errors: Mapping[str, str]
    ) -> None:
        """Write the block that begins at row ``start``; it counts when this returns.

        Args:
            features: of all its rows, in the type that the cache stores.
            status: (n,) uint8, as in ``layout``.
            errors: why rows have no features, by id.
        """
        stored, rows = self._stored[split], self.plan.splits[split]
        stop = start + len(features)
        values = {
            "features": features,
            "labels": rows.labels[start:stop],
            "ids": rows.encoded_ids[start:stop],
            "content": rows.content[start:stop],
            "status": status,
        }
        checksums = np.zeros(1, layout.CHECKSUMS)
        with explained(self.path.parent):
            for name, part in values.items():
                exact = np.ascontiguousarray(part, dtype=stored[name].dtype)
                assert exact.shape[1:] == stored[name].shape[1:]
                self._write_at(stored[name], start, exact)
                checksums[name] = np.frombuffer(layout.digest(exact), np.uint8)
            self._add_errors(stored["errors"], errors)
            os.fsync(self._fd)
            self._write_at(stored["checksums"], start // self.plan.block_rows, checksums)
            os.fsync(self._fd)

    def _add_errors(self, stored: Stored, errors: Mapping[str, str]) -> None:
        known = stored.map()
        slots = iter(np.flatnonzero(known["id"] == b""))
        told = set(known["id"].tolist())
        for row_id, message in errors.items():
            if row_id.encode() in told:
                continue
            slot = next(slots, None)
            if slot is None:
                break
            record = np.array([(row_id.encode(), message.encode()[: layout.MESSAGE_SIZE])], dtype=stored.dtype)
            self._write_at(stored, int(slot), record)

    def seal(self, *, seconds: float) -> Path:
        """Publish the finished file.

        Args:
            seconds: that this build took; recorded with those of builds before it.

        Returns:
            The path of the sealed cache.
        """
        assert not any(self.pending(split) for split in self.plan.splits)
        sealed = {**self.provenance, "sealed": True, "created": _now(), "cost": self._cost(seconds)}
        sealed["root_digest"] = stored_root_digest(self._attributes, sealed, self._stored)
        with explained(self.path.parent):
            self._write(self._provenance_offset, _padded(sealed))
            os.fsync(self._fd)
            os.close(self._fd)
            self._fd = -1  # from here on nothing writes to the file
            os.replace(self.partial, self.path)
            sync_folder(self.path.parent)
        return self.path

    def close(self, *, seconds: float) -> None:
        """Leave the file for a later build, unless it is sealed; ``seconds`` as for ``seal``."""
        if self._fd >= 0:
            self._write(self._provenance_offset, _padded({**self.provenance, "cost": self._cost(seconds)}))
            os.close(self._fd)
            self._fd = -1

    def _cost(self, seconds: float) -> float:
        return round(float(self.provenance.get("cost", 0)) + seconds, 3)

    def _write_at(self, stored: Stored, row: int, values: Array) -> None:
        row_bytes = stored.n_bytes // stored.shape[0]
        self._write(stored.offset + row * row_bytes, values.reshape(-1).view(np.uint8).tobytes())

    def _write(self, offset: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, offset)
            view, offset = view[written:], offset + written


def _create(partial: Path, plan: Plan, provenance: Mapping[str, Any]) -> None:
    """The whole file with its space reserved and no rows yet; complete under its name or not there."""
    import h5py

    n_rows = sum(len(rows.ids) for rows in plan.splits.values())
    temporary = partial.with_name(f"{partial.name}.{os.getpid()}")
    with removed_on_failure(temporary):
        with h5py.File(
            temporary, "w", libver=("v110", "v110"), alignment_threshold=1, alignment_interval=layout.ALIGNMENT
        ) as file:
            file.attrs["format"] = layout.FORMAT
            file.attrs["format_version"] = layout.FORMAT_VERSION
            file.attrs["encoder"] = layout.canonical_json(plan.encoder)
            file.attrs["encoder_fingerprint"] = layout.fingerprint(plan.encoder)
            names = [name.encode() for name in plan.class_names]
            fixed = h5py.string_dtype("utf-8", max(map(len, names)))
            file.attrs.create("class_names", np.array(names, dtype=fixed), dtype=fixed)
            file.attrs["block_rows"] = plan.block_rows
            text = h5py.string_dtype("utf-8", layout.PROVENANCE_SIZE)
            _allocate(file, "provenance", (), text)
            for name, rows in plan.splits.items():
                id_size = rows.encoded_ids.dtype.itemsize
                n, n_blocks = len(rows.ids), -(-len(rows.ids) // plan.block_rows)
                _allocate(file, f"{name}/features", (n, *plan.feature_shape), plan.feature_dtype)
                _allocate(file, f"{name}/labels", (n,), np.dtype("<i8"))
                _allocate(file, f"{name}/ids", (n,), h5py.string_dtype("utf-8", id_size))
                _allocate(file, f"{name}/content", (n, layout.DIGEST_SIZE), np.dtype("u1"))
                _allocate(file, f"{name}/status", (n,), np.dtype("u1"))
                _allocate(file, f"{name}/errors", (min(n, layout.MAX_ERRORS),), layout.errors_dtype(id_size))
                _allocate(file, f"{name}/checksums", (n_blocks,), layout.CHECKSUMS)
            offset = int(file["provenance"].id.get_offset())
        fd = os.open(temporary, os.O_RDWR)
        try:
            size = os.fstat(fd).st_size
            free = shutil.disk_usage(partial.parent).free
            if size > free:
                raise UserError(f"{partial.parent}: {n_rows:,} rows need {size:,} bytes, and {free:,} are free")
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(fd, 0, size)
            os.pwrite(fd, _padded(provenance), offset)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, partial)
        sync_folder(partial.parent)


def _allocate(file: Any, name: str, shape: tuple[int, ...], dtype: Any) -> None:
    """A contiguous data set whose space exists from the start; it reads as zeros where nothing was written."""
    import h5py

    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    kind = h5py.h5t.py_create(dtype, logical=True)
    space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
    h5py.h5d.create(file.id, name.encode(), kind, space, dcpl=creation, lcpl=links)


def _padded(provenance: Mapping[str, Any]) -> bytes:
    data = layout.canonical_json(provenance).encode()
    if len(data) > layout.PROVENANCE_SIZE:
        raise UserError(f"the provenance takes {len(data):,} bytes; {layout.PROVENANCE_SIZE:,} is the most")
    return data.ljust(layout.PROVENANCE_SIZE)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{time.time_ns() // 1000 % 1_000_000:06d}Z"
