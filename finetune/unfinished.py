"""The fingerprint of a fine-tuning in; the folder where its checkpoints lie until it is finished out."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from featcache.disk import explained
from featcache.errors import UserError
from featcache.files import one_line
from heads.plain_data import read_object

_PREFIX = ".unfinished-"


@dataclass(frozen=True, kw_only=True)
class WorkFolder:
    """A folder for checkpoints, and sentences for the user on it."""

    folder: Path
    notes: tuple[str, ...]


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
