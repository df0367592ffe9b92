"""All that decides a fine-tuning in; the folder where its checkpoints lie until it is finished out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from featcache import layout
from featcache.backbones import Backbone
from featcache.cache import Cache
from featcache.disk import explained
from featcache.errors import UserError
from featcache.files import one_line
from finetune.plans import Plan
from finetune.settings import Settings
from heads.plain_data import read_object
from heads.rows import Rows

_PREFIX = ".unfinished-"


@dataclass(frozen=True, kw_only=True)
class WorkFolder:
    """A folder for checkpoints, and sentences for the user on it."""

    folder: Path
    notes: tuple[str, ...]


def fingerprint_of(
    cache: Cache,
    rows: Rows,
    backbone: Backbone,
    plan: Plan,
    settings: Settings,
    *,
    device: torch.device,
    refit: bool,
    trunk: Mapping[str, Any] | None = None,
) -> str:
    """Of all that decides what weights come out; not of what only decides how fast. ``trunk`` tells of cached maps."""
    told: dict[str, Any] = {
        "cache": cache.fingerprint,
        "rows": rows.fingerprint,
        "weights": backbone.weights["sha256"],
        "plan": plan.to_json(),
        "settings": settings.to_json(),
        "device": device.type,
        "refit": refit,
        **({} if trunk is None else {"trunk": dict(trunk)}),
    }
    return layout.fingerprint(told)


def work_folder(runs_dir: Path, fingerprint: str, *, command: str, resume: bool) -> WorkFolder:
    """The folder of an unfinished training, empty unless it is to be gone on with.

    Raises:
        UserError: there is nothing to go on with, or the folder can't be written.
    """
    folder = _folder(runs_dir, fingerprint)
    there = folder.is_dir()
    notes: tuple[str, ...] = ()
    if resume and not there:
        others = _unfinished(runs_dir)
        told = f"; unfinished there: {'; '.join(others)}" if others else ""
        raise UserError(f"--resume: {runs_dir} holds no unfinished training of these flags, rows and weights{told}")
    if resume:
        notes = ("going on with the unfinished training",)
    elif there:
        notes = ("there was an unfinished training of this very kind, which --resume would have gone on with: anew",)
    with explained(runs_dir):
        if there and not resume:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "asked.json").write_text(json.dumps({"command": command}) + "\n")
    return WorkFolder(folder=folder, notes=notes)


def is_unfinished(runs_dir: Path, fingerprint: str) -> bool:
    """Whether there is a training to go on with."""
    return _folder(runs_dir, fingerprint).is_dir()


def _folder(runs_dir: Path, fingerprint: str) -> Path:
    return runs_dir / f"{_PREFIX}{fingerprint[:16]}"


def _unfinished(runs_dir: Path) -> list[str]:
    """The commands of some unfinished trainings."""
    found = []
    for folder in sorted(runs_dir.glob(f"{_PREFIX}*"))[:3]:
        try:
            found.append(one_line(read_object(folder / "asked.json").get("command")))
        except (OSError, ValueError):
            continue
    return found
