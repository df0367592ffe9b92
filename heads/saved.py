"""A head and its description to one .npz file and back: plain arrays and JSON, nothing that loading would execute."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.common.errors import UserError
from featcache.common.files import one_line
from heads.kernel_heads import LandmarkHead, SupportVectorHead
from heads.neighbors import NeighborHead
from heads.plain_data import parse_object, read_arrays
from heads.predictors import Head, LinearHead, MLPHead

FORMAT = "featcache-head"
VERSION = 1
KINDS: dict[str, type[Head]] = {
    kind.KIND: kind for kind in (LinearHead, MLPHead, NeighborHead, SupportVectorHead, LandmarkHead)
}
#: The most classes of a head whose meta names none: scores have a column for each, whatever the file's size.
MAX_NAMELESS = 100_000

_DESCRIPTION = "description"  # the member that holds the JSON, as uint8


def save_head(path: str | Path, head: Head, meta: dict[str, Any]) -> None:
    """Write the head and `meta` (anything JSON can hold) to `path`, whole or not at all.

    Members of the file: the head's arrays under their names, and `description`, the UTF-8 bytes of a JSON object with
    the keys format, version, kind and meta. Raises UserError where the folder cannot be written.
    """
    path = Path(path)
    description = {"format": FORMAT, "version": VERSION, "kind": head.KIND, "meta": meta}
    text = json.dumps(description, sort_keys=True, allow_nan=False).encode()
    members: dict[str, Any] = {_DESCRIPTION: np.frombuffer(text, np.uint8), **head.arrays()}
    unfinished = ""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            unfinished = file.name
            np.savez(file, **members)
            file.flush()
            os.fsync(file.fileno())
        Path(unfinished).chmod(0o644)
        os.replace(unfinished, path)
    except BaseException as error:
        if unfinished:
            Path(unfinished).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"cannot write the head to {path}: {error.strerror or error}") from error
        raise


def load_head(path: str | Path) -> tuple[Head, dict[str, Any]]:
    """The head and the `meta` that `save_head` wrote. Unpickles nothing, and takes no more memory than the file has.

    Raises UserError, one line, where the file is missing, damaged, no head, of a newer version, or inconsistent.
    """
    path = Path(path)
    try:
        arrays = read_arrays(path)
        description = parse_object(_bytes(arrays.pop(_DESCRIPTION)))
    except FileNotFoundError:
        raise UserError(f"there is no saved head at {path}") from None
    except KeyError:
        raise UserError(f"{path} is no saved head: it has no member {_DESCRIPTION}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read as a head: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} is no saved head, or a damaged one ({one_line(error)})") from error
    if description.get("format") != FORMAT:
        raise UserError(f"{path} is no saved head: its description does not say {FORMAT}")
    version, kind, meta = description.get("version"), description.get("kind"), description.get("meta")
    if type(version) is not int or version != VERSION:
        raise UserError(f"{path} has format version {one_line(version)}, this library reads {VERSION}")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(
            f"{path} holds a head of unknown kind {one_line(repr(kind))}: expected one of {', '.join(KINDS)}"
        )
    if not isinstance(meta, dict):
        raise UserError(f"{path} is inconsistent: the meta in its description is no JSON object")
    try:
        head = KINDS[kind].from_arrays(arrays)
    except UserError as error:
        raise UserError(f"{path} is inconsistent: {one_line(error)}") from error
    if fault := _fault(head, arrays, meta):
        raise UserError(f"{path} is inconsistent: {fault}")
    return head, meta


def _bytes(text: NDArray[Any]) -> bytes:
    if text.dtype != np.uint8 or text.ndim != 1:
        raise ValueError(f"its description is {text.dtype}{text.shape}, expected uint8 (N,)")
    return text.tobytes()


def _fault(head: Head, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> str:
    """What is wrong with a head whose arrays fit each other, or nothing."""
    for name, array in arrays.items():
        if not array.size:
            return f"{name} is {array.shape}, expected one number at least"
    names = meta.get("class_names")
    if names is None:
        return "" if head.n_classes <= MAX_NAMELESS else f"{head.n_classes:,} classes without names"
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return "its class_names are no list of names"
    return "" if len(names) == head.n_classes else f"it scores {head.n_classes:,} classes and names {len(names):,}"
