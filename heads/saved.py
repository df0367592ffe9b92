"""A head and its description to one .npz file and back: plain arrays and JSON, nothing that loading would execute."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from featcache.errors import UserError
from heads.kernel_heads import LandmarkHead, SupportVectorHead
from heads.neighbors import NeighborHead
from heads.predictors import Head, LinearHead, MLPHead

FORMAT = "featcache-head"
VERSION = 1
KINDS: dict[str, type[Head]] = {
    kind.KIND: kind for kind in (LinearHead, MLPHead, NeighborHead, SupportVectorHead, LandmarkHead)
}
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
    """The head and the `meta` that `save_head` wrote. Unpickles nothing.

    Raises UserError, one line, where the file is missing, damaged, no head, of a newer version, or inconsistent.
    """
    path = Path(path)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as members:
            arrays = {name: members[name] for name in members.files}
        description = json.loads(arrays.pop(_DESCRIPTION).tobytes())
    except FileNotFoundError:
        raise UserError(f"there is no saved head at {path}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        raise UserError(f"{path} is no saved head, or a damaged one ({_line(error)})") from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path} is damaged ({_line(error)}): fit and save the head again") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise UserError(f"{path} is no saved head: its description does not say {FORMAT}")
    if description.get("version") != VERSION:
        raise UserError(f"{path} has format version {description.get('version')}, this library reads {VERSION}")
    kind, meta = description.get("kind"), description.get("meta")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{path} holds a head of unknown kind {kind!r}: expected one of {', '.join(KINDS)}")
    if not isinstance(meta, dict):
        raise UserError(f"{path} is inconsistent: the meta in its description is no JSON object")
    try:
        return KINDS[kind].from_arrays(arrays), meta
    except UserError as error:
        raise UserError(f"{path} is inconsistent: {error}") from error


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
