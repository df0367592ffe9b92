"""bin/predict, interrupted or killed: gone on with to the same lines, or refused where images or run changed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving import Served, rows

from heads.serving.resumable_file import ResumableFile

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parents[1]


def test_a_changed_image_or_run_is_not_gone_on_with(
    served: Served, predict: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, out = tmp_path / "p", tmp_path / "out.csv"
    shutil.copytree(served.pictures / "test", copy)
    (copy / "red" / "6.png").write_bytes(b"damaged")
    assert predict("head", copy, "--out", out, "--strict", "--batch-size", 4)[0] == 1
    assert not out.exists()
    status, _, err = predict("near", copy, "--out", out)
    assert status == 1
    assert "begun with another run (12 images are done); give the same, or begin anew with --restart" in err
    os.utime(copy / "green" / "1.png", (1, 1))
    status, _, err = predict("head", copy, "--out", out)
    assert status == 1
    assert "its first 12 images are not those that are given now, or were changed since" in err
    told = json.loads(predict("head", copy, "--out", out, "--restart", "--json")[1])
    assert (told["images"], told["damaged"], told["done_before"]) == (14, 1, 0)
    assert [row["error"] == "" for row in rows(out.read_text())] == [True] * 13 + [False]


def test_an_interrupt_keeps_what_is_done_and_says_how_to_go_on(
    served: Served, predict: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ResumableFile.append

    def interrupted(file: ResumableFile, *given: Any) -> None:
        real(file, *given)
        raise KeyboardInterrupt

    flags = [served.pictures / "test", "--batch-size", 4, "--json", "--out"]
    with monkeypatch.context() as patch:
        patch.setattr(ResumableFile, "append", interrupted)
        for _ in range(2):
            status, out, err = predict("head", *flags, "out.jsonl")
            assert (status, out) == (1, "")
            assert err.endswith("error: interrupted; with --out what is done is kept: run the same command to go on\n")
    told = json.loads(predict("head", *flags, "out.jsonl")[1])
    whole = json.loads(predict("head", *flags, "whole.jsonl")[1])
    assert (told["images"], told["done_before"], whole["done_before"]) == (14, 8, 0)
    assert told["classes"] == whole["classes"]
    assert Path("out.jsonl").read_text() == Path("whole.jsonl").read_text()


@pytest.mark.slow
def test_killed_twice_every_image_is_there_once_and_in_order(served: Served, tmp_path: Path) -> None:
    """FEATCACHE_PREDICTIONS=10000 tries it with so many.

    Its quicker twin is `test_an_interrupt_keeps_what_is_done_and_says_how_to_go_on`.
    """
    count = int(os.environ.get("FEATCACHE_PREDICTIONS", "600"))
    (tmp_path / "images").mkdir()
    data = (served.pictures / "test" / "red" / "0.png").read_bytes()
    for i in range(count):
        (tmp_path / "images" / f"{i:06}.png").write_bytes(data)
    often = (
        "import sys; from heads.serving import predict_command, resumable_file; resumable_file.SYNC_EVERY = 0.05; "
        "sys.exit(predict_command.main())"
    )
    start = ["-c", often] if count == 600 else [ROOT / "bin" / "predict"]
    flags = ["--batch-size", "4" if count == 600 else "16", "--device", "cpu", "--json"]
    command = [sys.executable, *start, served.runs_dir / "head", "images", "--out", "out.csv", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    record, done = tmp_path / ".out.csv.partial.json", 0
    for _ in range(2):
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 100
        while True:
            assert process.poll() is None
            assert time.monotonic() < end, "no more images were predicted within 100 s"
            now = json.loads(record.read_text())["progress"]["items"] if record.exists() else 0
            if now > done:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
        done = now
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    told = json.loads(ended.stdout)
    assert told["images"] == count
    assert told["done_before"] >= done > 0
    found = rows((tmp_path / "out.csv").read_text())
    assert [row["path"] for row in found] == [f"images/{i:06}.png" for i in range(count)]
    assert {(row["class"], row["probability"]) for row in found} == {(found[0]["class"], found[0]["probability"])}
    assert {path.name for path in tmp_path.iterdir()} == {"images", "out.csv"}
