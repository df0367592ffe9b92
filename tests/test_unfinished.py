"""What bin/finetune says where it is ended before its time, and what it leaves behind."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import QUICK
from forking import fork_command

from featcache.common.errors import UserError
from finetune import publishing, training
from finetune.unfinished import WorkFolder, work_folder
from heads.run_canary import write_canary
from heads.runs import read_run

Run = Callable[..., tuple[int, str, str]]
FLAGS = ("--val-fraction", "0.2", "--device", "cpu", "--trunk-cache", "off")


@pytest.fixture
def embedded(run: Run) -> None:
    status, _, err = run("embed", *QUICK, "--limit", "test=30", "--device", "cpu")
    assert status == 0, err


def test_ctrl_c_where_nothing_is_trained(tmp_path: Path, embedded: None) -> None:
    process = fork_command("finetune", *FLAGS, "--unfreeze", "all", "--find-lr", folder=tmp_path)
    process.stdout_line("rows: ")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    told = "finetune: error: interrupted; nothing to go on with was kept: run the same command again"
    assert (process.returncode, err.splitlines()[-1]) == (1, told)
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_before_and_after_the_first_epoch(
    run: Run, tmp_path: Path, embedded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = training.shuffled
    flags = (*FLAGS, "--epochs", "3")
    for epoch, told in ((0, "nothing to go on with was kept: run the same"), (1, "with --resume to go on")):

        def interrupted(*given: Any, seed: tuple[int, int], epoch: int = epoch) -> Any:
            if seed[1] == epoch:
                raise KeyboardInterrupt
            return right(*given, seed=seed)

        monkeypatch.setattr(training, "shuffled", interrupted)
        status, out, err = run("finetune", *flags)
        assert status == 1
        assert told in err.splitlines()[-1]
        assert "unfinished" not in out
        assert len(list((tmp_path / "runs").glob(".unfinished-*"))) == epoch
    monkeypatch.setattr(training, "shuffled", partial(interrupted, epoch=0))
    (folder,) = (tmp_path / "runs").iterdir()
    with (folder / "lock").open() as lock:  # as a process that trains holds it
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, _, err = run("finetune", *flags, "--resume")
        assert (status, err.count("\n")) == (1, 1)
        assert "--resume: another process is at the unfinished training of these settings; wait for it" in err
        status, out, err = run("finetune", *flags, "--name", "mine")
        assert status == 1
        assert "another process is training with the same settings" in out
        assert list((tmp_path / "runs").iterdir()) == [folder]
        assert (folder / "chosen.pt").exists()
    monkeypatch.setattr(training, "shuffled", right)

    def meanwhile(*given: Any) -> None:
        write_canary(*given)
        (tmp_path / "runs" / "mine").mkdir()
        (tmp_path / "runs" / "mine" / "run.json").touch()

    monkeypatch.setattr(publishing, "write_canary", meanwhile)
    status, out, _ = run("finetune", *flags, "--resume", "--name", "mine")
    assert status == 0
    assert "going on with the unfinished training" in out
    assert "WARNING: another process has made runs/mine meanwhile; this one's work is kept as runs/mine-1" in out
    assert read_run(tmp_path / "runs" / "mine-1").record["kind"] == "finetune"
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"mine", "mine-1"}


def folder_of(runs_dir: Path, *, resume: bool = False, **flags: bool) -> AbstractContextManager[WorkFolder]:
    return work_folder(runs_dir, "a" * 64, command="finetune", resume=resume, **flags)


def test_a_folder_that_holds_no_epoch_is_begun_anew(tmp_path: Path) -> None:
    with folder_of(tmp_path) as first:
        assert not first.has_checkpoint
    with folder_of(tmp_path, resume=True) as again:
        assert (again.folder, again.notes) == (first.folder, ("no epoch was kept: the training begins anew",))
        (first.folder / "chosen.pt").touch()
    with folder_of(tmp_path, resume=True) as again:
        assert "going on" in again.notes[0]
    with folder_of(tmp_path) as again:
        assert "discarded an unfinished run with the same settings; use --resume" in again.notes[0]
    assert not first.has_checkpoint


def test_trainings_with_the_same_settings_keep_apart(tmp_path: Path) -> None:
    with folder_of(tmp_path) as first:
        (first.folder / "chosen.pt").touch()
        with (
            pytest.raises(UserError, match="another process is at the unfinished training"),
            folder_of(tmp_path, resume=True),
        ):
            pass
        with folder_of(tmp_path, resume=True, or_new=True) as second, folder_of(tmp_path) as third:
            folders = {first.folder, second.folder, third.folder}
            assert "another process is training with the same settings" in second.notes[0]
            (second.folder / "trial-0").mkdir()
            (second.folder / "trial-0" / "chosen.pt").touch()
            third.remove()
        assert len(folders) == 3
        assert first.has_checkpoint
        os.utime(first.folder / "chosen.pt", (1, 1))
    with folder_of(tmp_path, resume=True) as newest, folder_of(tmp_path, resume=True) as oldest:
        assert (newest.folder, oldest.folder) == (second.folder, first.folder)
        newest.remove()
        oldest.remove()
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="holds no unfinished training"), folder_of(tmp_path, resume=True):
        pass


def test_a_process_that_is_killed_holds_nothing(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, signal; from finetune.unfinished import work_folder\n"
        "with work_folder(pathlib.Path(), 'a' * 64, command='', resume=False) as work:\n"
        "    (work.folder / 'chosen.pt').touch(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert (
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False, timeout=100).returncode
        == -signal.SIGKILL
    )
    with folder_of(tmp_path, resume=True) as work:
        assert work.has_checkpoint
    with folder_of(tmp_path) as work:
        assert not work.has_checkpoint


def test_many_begin_and_end_at_once(tmp_path: Path) -> None:
    held: set[Path] = set()
    clashes: list[Path] = []

    def train() -> None:
        for _ in range(30):
            with folder_of(tmp_path) as work:
                clashes.extend({work.folder} & held)
                held.add(work.folder)
                (work.folder / "chosen.pt").touch()
                clashes.extend([] if work.has_checkpoint else [work.folder])
                held.remove(work.folder)
                work.remove()

    threads = [threading.Thread(target=train) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (clashes, held) == ([], set())
    assert not list(tmp_path.iterdir())
