"""How a cache file is laid out: the names, types and digests that its reader and its builder share.

``FORMAT.md`` beside this module describes the same for other languages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.common.hashing import DIGEST_SIZE, digest, fingerprint

FORMAT = "featcache"
FORMAT_VERSION = 2

#: Bytes of the JSON in ``/provenance``, padded with spaces.
PROVENANCE_SIZE = 65536
#: Data start at multiples of this many bytes.
ALIGNMENT = 4096
#: The data sets of a split whose blocks of rows are checksummed.
CHECKED = ("features", "labels", "ids", "content", "status", "origin")
PRECISIONS = ("fp32", "bf16", "fp16", "int8")
STORAGES = ("float16", "float32")
SPLITS = ("train", "val", "test")
#: At most this many failures are told in ``errors``; ``status`` marks them all.
MAX_ERRORS = 1024
#: Bytes of a message in ``errors``, UTF-8.
MESSAGE_SIZE = 160
#: Other caches that rows of one cache may be copied from, so that the provenance holds what is told of them.
MAX_SOURCES = 100

#: ``status`` of a row.
OK = 0
DAMAGED = 1
NOT_FINITE = 2
STATUS_NAMES = {OK: "ok", DAMAGED: "damaged image", NOT_FINITE: "features not finite"}

#: A row of ``checksums``: for one block of rows, that of each data set's bytes; all zero while not written.
CHECKSUMS = np.dtype([(name, np.uint8, (DIGEST_SIZE,)) for name in CHECKED])

_BLOCK_BYTES = 1 << 18
_BIG_ROW_BYTES = 1 << 16

DataSets = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]


def block_rows(row_bytes: int) -> int:
    """Rows that share a checksum: 256 KiB of features, and a big row (a map) by itself, as it is read by itself."""
    return 1 if row_bytes >= _BIG_ROW_BYTES else max(1, _BLOCK_BYTES // max(1, row_bytes))


def split_data_sets(
    n_rows: int, *, feature_shape: tuple[int, ...], storage: str, id_size: int, block_rows: int
) -> DataSets:
    """The type and shape of each data set of a split.

    Args:
        n_rows: rows of the split.
        feature_shape: of one row.
        storage: ``float16`` or ``float32``.
        id_size: bytes of the longest id.
        block_rows: rows that share a checksum.
    """
    errors = np.dtype([("id", f"S{id_size}"), ("message", f"S{MESSAGE_SIZE}")])
    return {
        "features": (np.dtype(storage).newbyteorder("<"), (n_rows, *feature_shape)),
        "labels": (np.dtype("<i8"), (n_rows,)),
        "ids": (np.dtype(f"S{id_size}"), (n_rows,)),
        "content": (np.dtype("u1"), (n_rows, DIGEST_SIZE)),
        "status": (np.dtype("u1"), (n_rows,)),
        "origin": (np.dtype("u1"), (n_rows,)),
        "errors": (errors, (min(n_rows, MAX_ERRORS),)),
        "checksums": (CHECKSUMS, (-(-n_rows // block_rows),)),
    }


def canary_data_sets(n_pictures: int, *, feature_shape: tuple[int, ...], storage: str, id_size: int) -> DataSets:
    """The type and shape of each data set of ``/canary``."""
    return {
        "features": (np.dtype(storage).newbyteorder("<"), (n_pictures, *feature_shape)),
        "ids": (np.dtype(f"S{id_size}"), (n_pictures,)),
        "pixels": (np.dtype("u1"), (n_pictures, DIGEST_SIZE)),
    }


def n_bytes(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    """Of a data set; exact however absurd the shape."""
    return math.prod(shape) * dtype.itemsize


def blocks(n_rows: int, block_rows: int) -> Iterator[tuple[int, int]]:
    """The first row of each block and the one after its last."""
    return ((start, min(start + block_rows, n_rows)) for start in range(0, n_rows, block_rows))


def root_digest(
    attributes: Mapping[str, Any],
    provenance: Mapping[str, Any],
    data_sets: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]],
    contents: Mapping[str, NDArray[Any]],
) -> str:
    """The digest of all logical content, 32 hex digits.

    Args:
        attributes: the root attributes as JSON values.
        provenance: its JSON; ``root_digest`` in it is passed over.
        data_sets: by path in the file, the type and shape of each.
        contents: by path, those that stand for all: the checksums and errors of each split, and all of the canary.
    """
    told = {
        "attributes": dict(attributes),
        "provenance": {key: value for key, value in provenance.items() if key != "root_digest"},
        "shapes": {path: [_spelled(dtype), list(shape)] for path, (dtype, shape) in data_sets.items()},
        "digests": {path: digest(values).hex() for path, values in contents.items()},
    }
    return fingerprint(told)


def _spelled(dtype: np.dtype[Any]) -> Any:
    return dtype.str if dtype.names is None else f"{dtype.itemsize} bytes"


def status_name(status: int) -> str:
    """What a row's status means."""
    return STATUS_NAMES.get(status, f"status {status}")
