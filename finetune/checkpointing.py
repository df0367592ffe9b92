"""The state of a training in the making to a file and back: whole or not at all, and nothing in it is executed."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from featcache.common.disk import explained, sync_folder
from featcache.common.errors import UserError
from featcache.common.files import one_line
from finetune.best import Best

_VERSION = 1


@dataclass(eq=False, kw_only=True)
class Progress:
    """How far a training has come.

    Attributes:
        epochs: that are done.
        stopped: whether it ended early.
        history: an entry an epoch, as in ``run.json``.
        best: None where there is no validation.
    """

    epochs: int = 0
    stopped: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    best: Best | None = None


def save_checkpoint(path: Path, progress: Progress, state: Mapping[str, Any], *, fingerprint: str) -> None:
    """Write a checkpoint under another name, sync it, and rename it.

    Args:
        path: of the checkpoint; its folder is there.
        progress: how far the training has come.
        state: tensors, numbers and containers of them: weights, optimizer, and so on.
        fingerprint: of all that decides the result.

    Raises:
        UserError: the folder can't be written.
    """
    best = progress.best
    told = {"epochs": progress.epochs, "stopped": progress.stopped, "history": progress.history}
    if best is not None:
        told["best"] = {"epoch": best.epoch, "val_accuracy": best.val_accuracy, "val_loss": best.val_loss}
    content = {
        "version": _VERSION,
        "fingerprint": fingerprint,
        "progress": json.dumps(told),
        "best_weights": {} if best is None else best.weights,
        "best_scores": torch.empty(0) if best is None else torch.from_numpy(best.scores),
        "state": dict(state),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with explained(path.parent):
        try:
            with temporary.open("wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path, *, fingerprint: str) -> tuple[Progress, dict[str, Any]] | None:
    """What `save_checkpoint` wrote, its tensors on the CPU; None where there is no such file.

    Raises:
        UserError: it is damaged, or another training's.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        raise UserError(f"{path}: a damaged checkpoint ({one_line(error)}); remove it and begin anew") from error
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        raise UserError(f"{path}: no checkpoint of this version; remove it and begin anew")
    if content["fingerprint"] != fingerprint:
        raise UserError(f"{path}: a checkpoint of other settings, rows or weights; run without --resume to begin anew")
    told = json.loads(content["progress"])
    best = told.pop("best", None)
    if best is not None:
        best = Best(**best, scores=content["best_scores"].numpy(), weights=content["best_weights"])
    return Progress(**told, best=best), content["state"]
