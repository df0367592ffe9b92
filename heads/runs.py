"""A finished run in, its folder out: ``run.json``, ``predictions.npz`` and the model, all together or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.disk import explained, sync_folder
from featcache.errors import UsageError, UserError
from heads.predictors import Head
from heads.saved import save_head

#: Version of the keys in ``run.json``.
SCHEMA = 1
_NAME = re.compile(r"[\w.+-]*\w[\w.+-]*", re.ASCII)


def new_run_name(runs_dir: Path, stem: str) -> str:
    """``stem-1``, or with the first number that is free."""
    stem = re.sub(r"[^\w.+-]", "_", stem, flags=re.ASCII)
    number = 1
    while (runs_dir / f"{stem}-{number}").exists():
        number += 1
    return f"{stem}-{number}"


def check_run_name(runs_dir: Path, name: str) -> None:
    """Refuse a name that is no folder's or is taken.

    Raises:
        UsageError: it is not made of letters, digits and ``._+-``.
        UserError: there is such a run.
    """
    if not _NAME.fullmatch(name) or name.startswith("."):
        raise UsageError(f"--name {name!r}: expected letters, digits, and . _ + - between them")
    if (runs_dir / name).exists():
        raise UserError(f"{runs_dir / name}: there is a run of that name; choose another --name, or remove it")


def write_run(
    folder: Path,
    *,
    record: Mapping[str, Any],
    predictions: Mapping[str, NDArray[Any]],
    head: Head,
    head_meta: Mapping[str, Any],
) -> None:
    """Write a run's folder under another name and rename it.

    Args:
        folder: where the run goes; its parents are made.
        record: what becomes ``run.json``.
        predictions: arrays for ``predictions.npz``.
        head, head_meta: for ``head.npz``.

    Raises:
        UserError: the folder can't be written.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    with explained(folder.parent):
        try:
            temporary.mkdir(parents=True)
            (temporary / "run.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
            np.savez(temporary / "predictions.npz", allow_pickle=False, **predictions)
            save_head(temporary / "head.npz", head, dict(head_meta))
            temporary.rename(folder)
            sync_folder(folder.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def created_now() -> str:
    """The time in UTC, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def peak_rss_mb() -> float:
    """The most memory this process has held, in MB."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)
