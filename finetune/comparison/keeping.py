"""A comparison in, ``comparison.json`` in its folder out, and back; what is read is checked, and never executed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featcache.common.disk import explained, sync_folder
from featcache.common.errors import UserError
from featcache.common.files import one_line
from finetune.comparison.results import (
    SCHEMA,
    Cell,
    Comparison,
    Difference,
    Interval,
    Overtaking,
    TableRow,
    Verdict,
)
from heads.plain_data import read_object

#: The file that holds a comparison, in its folder.
FILE_NAME = "comparison.json"


def keep(comparison: Comparison) -> Path:
    """Write ``comparison.json`` to the comparison's folder, whole or not at all, in the place of an earlier one.

    Raises:
        UserError: it can't be written.
    """
    path = comparison.folder / FILE_NAME
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with explained(comparison.folder):
        try:
            comparison.folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("w") as file:
                file.write(json.dumps(comparison.to_json(), indent=1, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(comparison.folder)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def comparison_of(told: Mapping[str, Any]) -> Comparison:
    """The comparison that `Comparison.to_json` told.

    Raises:
        ValueError: a newer schema, or keys that are missing, unknown, or of another type.
    """
    if told.get("schema") != SCHEMA:
        raise ValueError(f"schema {one_line(told.get('schema'))}, this library reads {SCHEMA}")
    try:
        values = {key: value for key, value in told.items() if key != "schema"}
        verdict = dict(values["verdict"])
        overtakes = verdict["overtakes"]
        verdict |= {
            "sentences": tuple(verdict["sentences"]),
            "gain_ci95": _pair(verdict["gain_ci95"]),
            "overtakes": None if overtakes is None else Overtaking(**overtakes),
        }
        return Comparison(
            **{
                **values,
                "folder": Path(values["folder"]),
                "report": None if values["report"] is None else Path(values["report"]),
                "cells": tuple(
                    Cell(**{**cell, "run": None if cell["run"] is None else Path(cell["run"])})
                    for cell in values["cells"]
                ),
                "table": tuple(
                    TableRow(
                        **{
                            **row,
                            "accuracy_ci95": _pair(row["accuracy_ci95"]),
                            "seed_spread": _pair(row["seed_spread"]),
                            "notes": tuple(row["notes"]),
                        }
                    )
                    for row in values["table"]
                ),
                "differences": tuple(
                    Difference(**{**each, "ci95": _pair(each["ci95"])}) for each in values["differences"]
                ),
                "verdict": Verdict(**verdict),
            }
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no comparison of this schema ({one_line(error)})") from error


def read_comparison(folder: Path) -> Comparison:
    """The comparison that is kept in a folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = folder / FILE_NAME
    try:
        return comparison_of(read_object(path))
    except OSError as error:
        raise UserError(f"{path}: no comparison ({one_line(error.strerror or error)})") from error
    except ValueError as error:
        raise UserError(f"{path}: {one_line(error)}; run the comparison again") from error


def _pair(ends: Any) -> Interval | None:
    return None if ends is None else (float(ends[0]), float(ends[1]))
