"""Keep the checkpoints of an unfinished fine-tuning in a folder that one job has at a time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from featcache.common.disk import explained
from featcache.common.errors import RankEndedError, UserError
from featcache.common.files import one_line
from featcache.common.locks import lock_now
from featcache.common.ranks import ALONE, Ranks
from heads.plain_data import read_object

#: What to do after an interruption that left a checkpoint, and after one that left none.
GO_ON = "run the same command with --resume to go on from the last epoch that was kept"
BEGIN_ANEW = "nothing to go on with was kept: run the same command again"
_PREFIX = ".unfinished-"
_LOCK = "lock"


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
        return any(self.folder.rglob("*.pt"))

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
            with suppress(OSError):
                self.clear()
                (self.folder / _LOCK).unlink()  # last: until then nobody else can have the folder
                self.folder.rmdir()

    def clear(self) -> None:
        """Remove all that it holds but the lock."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != _LOCK:
                path.unlink()


@contextmanager
def work_folder(
    runs_dir: Path, fingerprint: str, *, command: str, resume: bool, or_new: bool = False, ranks: Ranks = ALONE
) -> Iterator[WorkFolder]:
    """The folder of an unfinished training, which no other process gets until the block ends, however that does.

    The first rank makes it for all. Where other processes train with the same settings each has a folder of its own.

    Args:
        runs_dir: where it lies.
        fingerprint: of all that decides the result.
        command: that asked.
        resume: whether to resume the newest unfinished training that no process is at; else the folder holds nothing.
        or_new: whether a new folder serves if there is none to resume.
        ranks: that share it.

    Raises:
        UserError: there is nothing to resume, or the folder can't be written.
    """
    if not ranks.is_first:
        yield WorkFolder(folder=Path(ranks.share(None)), is_own=False)
        return
    with ExitStack() as held:
        with explained(runs_dir):
            resumable = sorted(_folders(runs_dir, fingerprint), key=_last_written, reverse=True) if resume else []
            folder = next((candidate for candidate in resumable if _locked(candidate, held)), None)
            if resume and folder is None and not or_new:
                raise UserError(f"--resume: {_refusal(runs_dir, is_held=bool(resumable))}")
            resumed = folder is not None
            folder = folder or _new_folder(runs_dir, fingerprint, held)
            work = WorkFolder(folder=folder)
            work = replace(
                work, notes=_notes(work, resumed=resumed, is_second=folder != _folder(runs_dir, fingerprint))
            )
            if not resumed:
                work.clear()
            (folder / "asked.json").write_text(json.dumps({"command": command}) + "\n")
        ranks.share(str(folder))
        yield work


def is_unfinished(runs_dir: Path, fingerprint: str) -> bool:
    """Whether there is a training to go on with."""
    return bool(_folders(runs_dir, fingerprint))


def _notes(work: WorkFolder, *, resumed: bool, is_second: bool) -> tuple[str, ...]:
    kept = work.has_checkpoint
    if resumed:
        return ("going on with the unfinished training" if kept else "no epoch was kept: the training begins anew",)
    discarded = "discarded an unfinished run with the same settings; use --resume to continue such a run"
    second = "another process is training with the same settings; this one's checkpoints have a folder of their own"
    return (*([second] if is_second else []), *([discarded] if kept else []))


def _refusal(runs_dir: Path, *, is_held: bool) -> str:
    if is_held:
        return "another process is at the unfinished training of these settings; wait for it, or leave --resume out"
    others = _unfinished(runs_dir)
    told = f"; unfinished there: {'; '.join(others)}" if others else ""
    return f"{runs_dir} holds no unfinished training of these flags, rows and weights{told}"


def _folder(runs_dir: Path, fingerprint: str, number: int = 1) -> Path:
    return runs_dir / f"{_PREFIX}{fingerprint[:16]}{'' if number == 1 else f'-{number}'}"


def _folders(runs_dir: Path, fingerprint: str) -> list[Path]:
    """All that are there."""
    return [path for path in runs_dir.glob(f"{_folder(runs_dir, fingerprint).name}*") if path.is_dir()]


def _new_folder(runs_dir: Path, fingerprint: str, held: ExitStack) -> Path:
    """The first that no process has, made if it is missing, and locked."""
    runs_dir.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        folder = _folder(runs_dir, fingerprint, number)
        with suppress(FileExistsError):
            folder.mkdir()  # exist_ok would raise if another process removes it just then
        if _locked(folder, held):
            return folder
    raise AssertionError  # count does not end


def _locked(folder: Path, held: ExitStack) -> bool:
    """Whether this process has the folder to itself from now on, until ``held`` ends or the process does."""
    path = folder / _LOCK
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:  # its training has just ended
        return False
    with ExitStack() as closing:
        closing.callback(os.close, fd)
        if lock_now(fd, path):
            held.push(closing.pop_all())
            return True
    return False


def _last_written(folder: Path) -> float:
    """When its newest checkpoint was written, in seconds; 0 if it has none, or goes away meanwhile."""
    with suppress(OSError):
        return max((path.stat().st_mtime for path in folder.rglob("*.pt")), default=0.0)
    return 0.0


def _unfinished(runs_dir: Path) -> list[str]:
    """The commands of some unfinished trainings."""
    found = []
    for folder in sorted(runs_dir.glob(f"{_PREFIX}*"))[:3]:
        try:
            found.append(one_line(read_object(folder / "asked.json").get("command")))
        except (OSError, ValueError):
            continue
    return found
