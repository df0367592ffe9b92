"""The fingerprint of a fine-tuning in; the folder where its checkpoints lie until it is finished out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from featcache.disk import explained
from featcache.errors import RankEndedError, UserError
from featcache.files import one_line
from featcache.ranks import ALONE, Ranks
from heads.plain_data import read_object

#: What to do after an interruption that left a checkpoint, and after one that left none.
GO_ON = "run the same command with --resume to go on from the last epoch that was kept"
BEGIN_ANEW = "nothing to go on with was kept: run the same command again"
_PREFIX = ".unfinished-"


@dataclass(frozen=True, kw_only=True)
class WorkFolder:
    """A folder for checkpoints.

    Attributes:
        folder: the same for all ranks.
        notes: sentences for the user on it.
        is_own: whether this process made it, and removes it.
    """

    folder: Path
    notes: tuple[str, ...] = ()
    is_own: bool = True

    @property
    def has_checkpoint(self) -> bool:
        """Whether an epoch is kept."""
        return any(self.folder.glob("*.pt"))

    @contextmanager
    def used(self) -> Iterator[None]:
        """Where the work ends before its time, say how to go on, and leave nothing behind that holds nothing."""
        try:
            yield
        except BaseException as error:
            if not self.has_checkpoint:
                self.remove()
            elif isinstance(error, (KeyboardInterrupt, RankEndedError)):
                raise type(error)(GO_ON) from error
            raise

    def remove(self) -> None:
        """By whoever made it."""
        if self.is_own:
            shutil.rmtree(self.folder, ignore_errors=True)


def work_folder(runs_dir: Path, fingerprint: str, *, command: str, resume: bool, ranks: Ranks = ALONE) -> WorkFolder:
    """The folder of an unfinished training, empty unless it is to be gone on with; the first rank makes it for all.

    Raises:
        UserError: there is nothing to go on with, or the folder can't be written.
    """
    if not ranks.is_first:
        return WorkFolder(folder=Path(ranks.share(None)), is_own=False)
    folder = _folder(runs_dir, fingerprint)
    there = folder.is_dir()
    notes: tuple[str, ...] = ()
    if resume and not there:
        others = _unfinished(runs_dir)
        told = f"; unfinished there: {'; '.join(others)}" if others else ""
        raise UserError(f"--resume: {runs_dir} holds no unfinished training of these flags, rows and weights{told}")
    kept = WorkFolder(folder=folder).has_checkpoint
    if resume:
        notes = ("going on with the unfinished training" if kept else "no epoch was kept: the training begins anew",)
    elif kept:
        notes = ("there was an unfinished training of this very kind, which --resume would have gone on with: anew",)
    with explained(runs_dir):
        if there and not resume:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "asked.json").write_text(json.dumps({"command": command}) + "\n")
    ranks.share(str(folder))
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
