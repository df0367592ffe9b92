"""Create the whole cache file of a plan, with its space reserved and its rows not yet written."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from featcache.build.plan import Plan
from featcache.cache import file_format
from featcache.cache.canary import Canary
from featcache.common import hashing
from featcache.common.disk import removed_on_failure, sync_folder
from featcache.common.errors import UserError


def create(path: Path, plan: Plan, provenance: Mapping[str, Any], canary: Canary, origins: Mapping[str, Any]) -> None:
    """Write the file under another name and rename it: it is whole or not there.

    Args:
        path: of the file.
        plan: what it will hold.
        provenance: its JSON.
        canary: written at once.
        origins: (N,) uint8 by split, likewise.

    Raises:
        UserError: the disk, a quota or a limit on the size of files has no room for it.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with removed_on_failure(temporary):
        offsets = _write_structure(temporary, plan, canary)
        fd = os.open(temporary, os.O_RDWR)
        try:
            _reserve(fd, path.parent, plan)
            write_at(fd, offsets["provenance"], padded(provenance))
            values = {f"canary/{name}": part for name, part in _canary_values(plan, canary).items()}
            values |= {f"{split}/origin": origin for split, origin in origins.items()}
            for name, part in values.items():
                write_at(fd, offsets[name], part.tobytes())
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
        sync_folder(path.parent)


def padded(provenance: Mapping[str, Any]) -> bytes:
    """The bytes of ``/provenance``."""
    data = hashing.canonical_json(provenance).encode()
    if len(data) > file_format.PROVENANCE_SIZE:
        raise UserError(f"the provenance takes {len(data):,} bytes; {file_format.PROVENANCE_SIZE:,} is the most")
    return data.ljust(file_format.PROVENANCE_SIZE)


def write_at(fd: int, offset: int, data: bytes | memoryview) -> None:
    """Write all of the data, in as many calls as it takes."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _canary_values(plan: Plan, canary: Canary) -> dict[str, Any]:
    expected = {
        name.removeprefix("canary/"): dtype
        for name, (dtype, _) in plan.data_sets(canary.ids).items()
        if name.startswith("canary/")
    }
    values = {"ids": [name.encode() for name in canary.ids], "features": canary.features, "pixels": canary.pixels}
    return {name: np.ascontiguousarray(np.array(value, dtype=expected[name])) for name, value in values.items()}


def _write_structure(path: Path, plan: Plan, canary: Canary) -> dict[str, int]:
    """HDF5's part of the file; gives where each data set lies."""
    import h5py

    alignment = {"alignment_threshold": 1, "alignment_interval": file_format.ALIGNMENT}
    with h5py.File(path, "w", libver=("v110", "v110"), locking=False, **alignment) as file:
        for name, value in plan.attributes.items():
            if isinstance(value, int):
                file.attrs[name] = value
            else:
                texts = [text.encode() for text in (value if isinstance(value, list) else [value])]
                fixed = h5py.string_dtype("utf-8", max(map(len, texts)))
                data = np.array(texts, dtype=fixed)
                file.attrs.create(name, data if isinstance(value, list) else data[0], dtype=fixed)
        _allocate(file, "provenance", (), h5py.string_dtype("utf-8", file_format.PROVENANCE_SIZE))
        for name, (dtype, shape) in plan.data_sets(canary.ids).items():
            text = dtype.kind == "S"
            _allocate(file, name, shape, h5py.string_dtype("utf-8", dtype.itemsize) if text else dtype)
        found = ["provenance", *plan.data_sets(canary.ids)]
        return {name: int(file[name].id.get_offset()) for name in found}


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


def _reserve(fd: int, folder: Path, plan: Plan) -> None:
    size = os.fstat(fd).st_size
    n_rows = sum(len(rows.ids) for rows in plan.splits.values())
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(f"{folder}: {n_rows:,} rows need {size:,} bytes, and {free:,} are free")
    reserve: Callable[[int, int, int], None] | None = getattr(os, "posix_fallocate", None)
    try:
        if reserve:
            reserve(fd, 0, size)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        reason = error.strerror or str(error)
        raise UserError(f"{folder}: {n_rows:,} rows need {size:,} bytes, and {free:,} are free ({reason})") from error
