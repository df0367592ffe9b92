"""What bin/finetune says where it is ended before its time, and what it leaves behind."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import QUICK
from forking import fork_command

from finetune import training
from finetune.unfinished import work_folder

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
    monkeypatch.setattr(training, "shuffled", right)
    status, out, _ = run("finetune", *flags, "--resume")
    assert status == 0
    assert "going on with the unfinished training" in out


def test_a_folder_that_holds_no_epoch_is_begun_anew(tmp_path: Path) -> None:
    first = work_folder(tmp_path, "a" * 64, command="finetune", resume=False)
    assert not first.has_checkpoint
    again = work_folder(tmp_path, "a" * 64, command="finetune", resume=True)
    assert (again.folder, again.notes) == (first.folder, ("no epoch was kept: the training begins anew",))
    (first.folder / "chosen.pt").touch()
    assert "going on" in work_folder(tmp_path, "a" * 64, command="finetune", resume=True).notes[0]
    assert "--resume would have" in work_folder(tmp_path, "a" * 64, command="finetune", resume=False).notes[0]
    assert not first.has_checkpoint
