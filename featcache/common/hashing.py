"""Digests and checksums of bytes and arrays; fingerprints of JSON values, and the fields in which two differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

#: Stands for the value of a field that one side does not have.
ABSENT = "absent"
#: Bytes of the digests in a file (BLAKE2b) and of its blocks' checksums (XXH3).
DIGEST_SIZE = 16

#: The values on both sides, by dotted name.
Fields = dict[str, tuple[Any, Any]]


def canonical_json(value: Any) -> str:
    """The one spelling of a JSON value that fingerprints are taken of: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(data: bytes | NDArray[Any]) -> bytes:
    """BLAKE2b, 16 bytes: of what identifies images, rows and files."""
    return hashlib.blake2b(_plain(data), digest_size=DIGEST_SIZE).digest()


def checksum(data: bytes | NDArray[Any]) -> bytes:
    """XXH3, 16 bytes: of a block of rows. No defence against forgery, but twenty times as fast as BLAKE2b."""
    return xxhash.xxh3_128_digest(_plain(data))


def _plain(data: bytes | NDArray[Any]) -> bytes | memoryview:
    return np.ascontiguousarray(data).reshape(-1).view(np.uint8).data if isinstance(data, np.ndarray) else data


def fingerprint(value: Any) -> str:
    """Digest of a JSON value, 32 hex digits."""
    return digest(canonical_json(value).encode()).hex()


def differing_fields(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> Fields:
    """The values of both sides where they differ, by dotted name; tuples and lists of the same values are the same."""
    found: Fields = {}
    for key in (*a, *(key for key in b if key not in a)):
        one, other = a.get(key, ABSENT), b.get(key, ABSENT)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found |= differing_fields(one, other, f"{prefix}{key}.")
        elif canonical_json(one) != canonical_json(other):
            found[f"{prefix}{key}"] = (one, other)
    return found
