"""Find the weights of a fine-tuning run, and the preprocessing that they were trained with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.common.errors import UserError
from featcache.common.files import one_line, open_regular, size_of
from featcache.sources.decoding import DECODER
from featcache.sources.preprocessing import RESIZES, Preprocessing

#: The files of a run that are read here; what else it holds is of no concern.
RECORD_FILE, MODEL_FILE = "run.json", "model.pth"
_MAX_RECORD_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True)
class TunedWeights:
    """What a run holds of its backbone.

    Attributes:
        path: of the state dict.
        name: that a cache records: the run's and the file's.
        preprocessing: of the images that it was tuned on, which is that of its weights from then on.
    """

    path: Path
    name: str
    preprocessing: Preprocessing


def tuned_weights(folder: Path, *, backbone: str) -> TunedWeights:
    """Look a run up that ``--weights`` names.

    Args:
        folder: of the run; it may come from a stranger.
        backbone: that the weights are wanted for.

    Raises:
        UserError: it is no run, the run of a head, or of another backbone.
    """
    try:
        record = _read(folder / RECORD_FILE)
    except FileNotFoundError as error:
        raise UserError(
            f"--weights {folder}: a folder without {RECORD_FILE}; expected a weights file, or the run of a fine-tuning"
        ) from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"--weights {folder}: {RECORD_FILE} cannot be read ({one_line(error)})") from error
    if record.get("kind") != "finetune":
        what = f"the run of a head ({one_line(record.get('method'))})" if record.get("kind") == "head" else "no run"
        raise UserError(f"--weights {folder}: {what}, which has no backbone; expected the run of a fine-tuning")
    encoder = record.get("encoder")
    if not isinstance(encoder, dict) or encoder.get("backbone") != backbone:
        found = one_line(encoder.get("backbone")) if isinstance(encoder, dict) else "no backbone that it tells of"
        raise UserError(f"--weights {folder}: a run of {found}, not of {backbone}: give --backbone {found}")
    try:
        preprocessing = _preprocessing(encoder["preprocessing"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"--weights {folder}: {RECORD_FILE} does not tell how images were preprocessed ({one_line(error)})"
        ) from error
    name = f"{folder.resolve().name}/{MODEL_FILE}"
    return TunedWeights(path=folder / MODEL_FILE, name=name, preprocessing=preprocessing)


def _preprocessing(told: Any) -> Preprocessing:
    """As the run records it, decoded as is done today. Raises KeyError, TypeError, ValueError or UsageError."""
    if not isinstance(told["image_size"], int) or not isinstance(told["resize_size"], int):
        raise TypeError("sizes are no whole numbers")
    if told["interpolation"] not in ("bilinear", "bicubic") or told["resize"] not in RESIZES:
        raise ValueError("an unknown way to resize")
    channels = {key: tuple(float(value) for value in told[key]) for key in ("mean", "std")}
    return Preprocessing.from_json({**told, **channels, "antialias": bool(told["antialias"]), "decoder": DECODER})


def _read(path: Path) -> dict[str, Any]:
    with open_regular(path) as file:
        if size_of(file) > _MAX_RECORD_BYTES:
            raise ValueError(f"{size_of(file):,} bytes, expected {_MAX_RECORD_BYTES:,} at most")
        record = json.loads(file.read(_MAX_RECORD_BYTES))
    if not isinstance(record, dict):
        raise TypeError(f"a {type(record).__name__}, expected an object")
    return record
