"""A finished run in, its folder out (``run.json``, ``predictions.npz`` and the model, all or none), and back."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.cache.canary import Canary
from featcache.common.disk import free_path, publish_folder
from featcache.common.errors import UsageError, UserError
from featcache.common.files import one_line
from heads.plain_data import read_arrays, read_object
from heads.predictors import Head
from heads.run_canary import write_canary
from heads.saved import save_head

#: Version of the keys in ``run.json``.
SCHEMA = 1
_NAME = re.compile(r"[\w.+-]*\w[\w.+-]*", re.ASCII)

_NUMBER, _ABSENT = (int, float), type(None)
_Fields = Mapping[str, type | tuple[type, ...]]
_RECORD: _Fields = {
    "kind": str, "method": str, "command": str, "created": str, "seed": int, "dataset": dict, "encoder": dict,
    "source": str, "augment": str, "params": dict, "selection": dict, "converged": (bool, _ABSENT),
    "trainable_params": int, "total_params": int, "frozen_sha256": (dict, _ABSENT), "metrics": dict, "cost": dict,
    "history": list, "environment": dict,
}  # fmt: skip
_DATASET: _Fields = {
    "name": str, "fingerprint": str, "class_names": list, "n_train": int, "n_val": int, "n_test": int,
}  # fmt: skip
_METRICS: _Fields = {
    "accuracy": _NUMBER, "accuracy_ci95": list, "top5": (*_NUMBER, _ABSENT), "balanced_accuracy": _NUMBER,
    "macro_f1": _NUMBER, "log_loss": (*_NUMBER, _ABSENT), "ece": (*_NUMBER, _ABSENT),
}  # fmt: skip
#: Keys that runs may have or lack, so that readers and runs of before and after them fit each other.
_MAY: _Fields = {
    "features": dict,
    "calibration": (dict, _ABSENT),
    "comparisons": list,
    "notes": list,
    "model_sha256": str,
}
_COST: _Fields = {"fit_s": _NUMBER, "peak_rss_mb": _NUMBER, "device": str}


@dataclass(frozen=True)
class Run:
    """A run's folder as it was read.

    Attributes:
        record: ``run.json``.
        predictions: for ``val`` and ``test`` each ``_ids`` (N,) text, ``_labels`` (N,) int64, and ``_scores``
            (N, n_classes) float32 or float64, finite.
        head: the path of the saved head, for ``heads.saved.load_head``; not opened.
    """

    record: dict[str, Any]
    predictions: dict[str, NDArray[Any]]
    head: Path


def plain_name(text: str) -> str:
    """The text as names of runs and files have it: all but letters, digits and ``._+-`` becomes ``_``."""
    return re.sub(r"[^\w.+-]", "_", text, flags=re.ASCII)


def new_run_name(runs_dir: Path, stem: str, *, taken: Collection[str] = ()) -> str:
    """``stem-1``, or with the first number that is free: no folder has that name, and it is not ``taken``."""
    return free_path(runs_dir, plain_name(stem), taken=taken).name


def check_run_name(runs_dir: Path, name: str) -> None:
    """Refuse a name that is no folder's or is taken.

    Raises:
        UsageError: it is not made of letters, digits and ``._+-``.
        UserError: there is such a run.
    """
    if not _NAME.fullmatch(name) or name.startswith("."):
        raise UsageError(f"--name {name!r}: expected letters, digits, and . _ + - between them")
    if os.path.lexists(runs_dir / name):
        raise UserError(f"{runs_dir / name}: there is a run of that name; choose another --name, or remove it")


def write_run(
    folder: Path,
    *,
    record: Mapping[str, Any],
    predictions: Mapping[str, NDArray[Any]],
    head: Head,
    head_meta: Mapping[str, Any],
    canaries: Sequence[Canary] = (),
    draw: Callable[[Path], object] | None = None,
    numbered: bool = False,
) -> Path:
    """Write a run's folder whole or not at all.

    Args:
        folder: where the run goes; its parents are made.
        record: what becomes ``run.json``.
        predictions: arrays for ``predictions.npz``.
        head, head_meta: for ``head.npz``.
        canaries: what each encoder made of the shipped pictures, for ``canary.npz``.
        draw: draws pictures into the folder that it is given.
        numbered: whether the folder's name ends in a number that may become another one.

    Returns:
        The run's folder; another than ``folder`` if that was taken, see `featcache.common.disk.publish_folder`.

    Raises:
        UserError: the folder can't be written.
    """

    def write(temporary: Path) -> None:
        (temporary / "run.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
        np.savez(temporary / "predictions.npz", allow_pickle=False, **predictions)
        save_head(temporary / "head.npz", head, dict(head_meta))
        if canaries:
            write_canary(temporary, canaries)
        if draw:
            draw(temporary)

    return publish_folder(folder, write, numbered=numbered)


def read_run(folder: str | Path) -> Run:
    """Read a run's folder, executing nothing and taking no more memory than its files have.

    Raises:
        UserError: no such folder, a newer schema, damage, or keys or arrays that are missing, of another type, or don't
            fit each other.
    """
    folder = Path(folder)
    try:
        record = read_object(folder / "run.json")
        fault = _record_fault(record)
        if not fault:
            predictions = read_arrays(folder / "predictions.npz")
            fault = _predictions_fault(predictions, record["dataset"])
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{folder}: no folder of a run, or not all of it ({one_line(reason)})") from error
    except ValueError as error:
        raise UserError(f"{folder}: damaged, or no run ({one_line(error)}); run it again") from error
    if fault:
        raise UserError(f"{folder}: {fault}")
    return Run(record, predictions, folder / "head.npz")


def _record_fault(record: Mapping[str, Any]) -> str:
    schema = record.get("schema")
    if type(schema) is not int:
        return "run.json has no schema, expected a number"
    if schema != SCHEMA:
        advice = "update featcache" if schema > SCHEMA else "run it again"
        return f"run.json has schema {one_line(schema)}, this library reads {SCHEMA}: {advice}"
    fault = _type_fault("", record, _RECORD)
    fault = fault or _type_fault("", record, {name: kinds for name, kinds in _MAY.items() if name in record})
    fault = fault or _type_fault("dataset.", record["dataset"], _DATASET)
    fault = fault or _type_fault("cost.", record["cost"], _COST)
    for split in ("train", "val", "test"):
        fault = fault or _type_fault("metrics.", record["metrics"], {split: dict})
        fault = fault or _type_fault(f"metrics.{split}.", record["metrics"][split], _METRICS)
        interval = () if fault else record["metrics"][split]["accuracy_ci95"]
        if not fault and (len(interval) != 2 or not all(type(end) in _NUMBER for end in interval)):
            fault = f"run.json: metrics.{split}.accuracy_ci95 is no pair of numbers"
    if fault:
        return fault
    names = record["dataset"]["class_names"]
    if not names or not all(isinstance(name, str) for name in names):
        return "run.json: dataset.class_names is no list of names"
    return ""


def _type_fault(where: str, values: Mapping[str, Any], fields: _Fields) -> str:
    for name, kinds in fields.items():
        expected = kinds if isinstance(kinds, tuple) else (kinds,)
        if name not in values:
            return f"run.json has no {where}{name}"
        if type(values[name]) not in expected:
            types = " or ".join(kind.__name__ for kind in expected)
            return f"run.json: {where}{name} is of the type {type(values[name]).__name__}, expected {types}"
    return ""


def _predictions_fault(predictions: Mapping[str, NDArray[Any]], dataset: Mapping[str, Any]) -> str:
    expected = {f"{split}_{part}" for split in ("val", "test") for part in ("ids", "labels", "scores")}
    if set(predictions) != expected:
        return f"predictions.npz holds {one_line(sorted(predictions))}, expected {sorted(expected)}"
    n_classes = len(dataset["class_names"])
    for split in ("val", "test"):
        ids, labels, scores = (predictions[f"{split}_{part}"] for part in ("ids", "labels", "scores"))
        n_rows = dataset[f"n_{split}"]
        shapes = {"ids": (n_rows,), "labels": (n_rows,), "scores": (n_rows, n_classes)}
        for part, shape in shapes.items():
            array = predictions[f"{split}_{part}"]
            if array.shape != shape:
                return f"predictions.npz: {split}_{part} is {array.shape}, run.json says {one_line(shape)}"
        if ids.dtype.kind != "U" or labels.dtype != np.int64 or scores.dtype not in (np.float32, np.float64):
            dtypes = f"{ids.dtype}, {labels.dtype}, {scores.dtype}"
            return f"predictions.npz: ids, labels and scores of {split} are {dtypes}, expected text, int64 and float"
        if labels.min(initial=0) < 0 or labels.max(initial=0) >= n_classes:
            return f"predictions.npz: {split}_labels are outside 0..{n_classes - 1}"
        if not np.isfinite(scores).all():
            return f"predictions.npz: {split}_scores holds values that are not finite"
        if len(np.unique(ids)) != len(ids):
            return f"predictions.npz: {split}_ids names a row twice"
    return ""


def created_now() -> str:
    """The time in UTC, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def reset_peak_rss() -> None:
    """Let `peak_rss_mb` tell the most from now on, where the system can (Linux); else it goes on as it was.

    What was freed and is kept for later (glibc) is handed back first, so that it does not count for what comes now.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss_mb() -> float:
    """The most memory this process has held, in MB; since `reset_peak_rss`, where that was called."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)
