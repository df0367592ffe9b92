"""Parse the JSON text of a cache file, and check that its fields have the right types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featcache.cache import file_format
from featcache.common import hashing
from featcache.common.errors import corrupt_error

_ENCODER_FIELDS = {
    "backbone": str, "weights": dict, "preprocessing": dict, "cut": str, "precision": str, "engine": str,
    "storage": str, "views": (int, dict),
}  # fmt: skip
_PROVENANCE_FIELDS = {
    "sealed": bool, "fingerprint": str, "source": dict, "weights": str, "batch": int, "threads": int, "hardware": dict,
    "versions": dict, "trunk_parameters": int, "reused": list, "command": list,
}  # fmt: skip
_OPTIONAL_FIELDS = {"cost": (int, float), "resumed_on": list, "working_folder": str, "engine": dict}
_SEALED_FIELDS = {"created": str, "cost": (int, float), "root_digest": str}


def checked_encoder(path: Path, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of the attribute ``encoder``. Raises CacheError where it does not match its fingerprint."""
    encoder = _object(path, "the attribute encoder", attributes["encoder"].encode(), _ENCODER_FIELDS)
    for name, known in (("precision", file_format.PRECISIONS), ("storage", file_format.STORAGES)):
        if encoder[name] not in known:
            raise corrupt_error(path, f"the encoder's {name} is {encoder[name]!r}; expected one of {', '.join(known)}")
    if hashing.fingerprint(encoder) != attributes["encoder_fingerprint"]:
        raise corrupt_error(path, "the encoder does not match its fingerprint; delete the file and embed again")
    return encoder


def checked_provenance(path: Path, data: bytes) -> dict[str, Any]:
    """The JSON of ``/provenance``. Raises CacheError where a field is missing or of another type."""
    provenance = _object(path, "/provenance", data, _PROVENANCE_FIELDS)
    if provenance["sealed"]:
        _check_fields(path, "/provenance", provenance, _SEALED_FIELDS)
    _check_fields(path, "/provenance", provenance, _OPTIONAL_FIELDS, optional=True)
    for source in provenance["reused"]:
        if not isinstance(source, dict):
            raise corrupt_error(path, "/provenance tells of reused caches otherwise than FORMAT.md says")
        _check_fields(path, "reused in /provenance", source, {"file": str, "fingerprint": str})
    source = {"dataset": str, "selection": dict, "notes": list, "folder": (str, type(None))}
    _check_fields(path, "/provenance", provenance["source"], source)
    return provenance


def _object(path: Path, where: str, text: bytes, fields: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object that has at least these fields."""
    try:
        value = json.loads(text)
        hashing.canonical_json(value).encode()  # neither NaN nor half a surrogate pair
    except (ValueError, RecursionError) as error:
        raise corrupt_error(path, f"{where} is no JSON ({' '.join(str(error).split())[:80]}); embed again") from error
    if not isinstance(value, dict):
        raise corrupt_error(path, f"{where} is no JSON object")
    _check_fields(path, where, value, fields)
    return value


def _check_fields(
    path: Path, where: str, value: Mapping[str, Any], fields: Mapping[str, Any], *, optional: bool = False
) -> None:
    for name, kind in fields.items():
        if not (optional and name not in value) and not isinstance(value.get(name), kind):
            raise corrupt_error(path, f"{where} has no {name}, or one of another type than FORMAT.md says")
