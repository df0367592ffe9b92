"""How a cache file is laid out: the names, types and digests that its reader and its builder share.

``FORMAT.md`` beside this module describes the same for other languages.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = "featcache"
FORMAT_VERSION = 1

#: Bytes of the digests in a file (BLAKE2b).
DIGEST_SIZE = 16
#: Bytes of the JSON in ``/provenance``, padded with spaces.
PROVENANCE_SIZE = 65536
#: Data start at multiples of this many bytes.
ALIGNMENT = 4096
#: The data sets of a split whose blocks of rows are checksummed.
CHECKED = ("features", "labels", "ids", "content", "status")
#: At most this many failures are told in ``errors``; ``status`` marks them all.
MAX_ERRORS = 1024
#: Bytes of a message in ``errors``, UTF-8.
MESSAGE_SIZE = 160

#: ``status`` of a row.
OK = 0
DAMAGED = 1
NOT_FINITE = 2
STATUS_NAMES = {OK: "ok", DAMAGED: "damaged image", NOT_FINITE: "features not finite"}

#: A row of ``checksums``: for one block of rows, the digest of each data set's bytes; all zero while not written.
CHECKSUMS = np.dtype([(name, np.uint8, (DIGEST_SIZE,)) for name in CHECKED])


def errors_dtype(id_size: int) -> np.dtype[Any]:
    """A row of ``errors``: a row's id and what was wrong with it, both UTF-8 padded with zeros."""
    return np.dtype([("id", f"S{id_size}"), ("message", f"S{MESSAGE_SIZE}")])


def blocks(n_rows: int, block_rows: int) -> Iterator[tuple[int, int]]:
    """The first row of each block and the one after its last."""
    return ((start, min(start + block_rows, n_rows)) for start in range(0, n_rows, block_rows))


def canonical_json(value: Any) -> str:
    """The one spelling of a JSON value that fingerprints are taken of: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(data: bytes | NDArray[Any]) -> bytes:
    """BLAKE2b, 16 bytes."""
    plain = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data if isinstance(data, np.ndarray) else data
    return hashlib.blake2b(plain, digest_size=DIGEST_SIZE).digest()


def fingerprint(value: Any) -> str:
    """Digest of a JSON value, 32 hex digits."""
    return digest(canonical_json(value).encode()).hex()


def root_digest(
    attributes: Mapping[str, Any],
    provenance: Mapping[str, Any],
    splits: Mapping[str, tuple[list[tuple[str, str, tuple[int, ...]]], NDArray[Any], NDArray[Any]]],
) -> str:
    """The digest of all logical content, 32 hex digits.

    Args:
        attributes: the root attributes as JSON values.
        provenance: its JSON; ``root_digest`` in it is passed over.
        splits: by name, the (name, type, shape) of each data set, the checksums and the errors.
    """
    told = {
        "attributes": dict(attributes),
        "provenance": {key: value for key, value in provenance.items() if key != "root_digest"},
        "splits": {
            name: {
                "shapes": [[data_set, kind, list(shape)] for data_set, kind, shape in shapes],
                "checksums": digest(checksums).hex(),
                "errors": digest(errors).hex(),
            }
            for name, (shapes, checksums, errors) in splits.items()
        },
    }
    return fingerprint(told)
