"""What bin/predict refuses, in one line: another encoder, drift, runs of strangers, flags that make no sense."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BACKBONE
from serving import Served, edited

from featcache.models.backbones import load_backbone
from heads.run_canary import read_canary, write_canary

Run = Callable[..., tuple[int, str, str]]


def test_the_run_knows_its_encoder_and_refuses_another_by_name(served: Served, predict: Run) -> None:
    picture = served.pictures / "test" / "red" / "0.png"
    same = ["--backbone=timm/test_resnet", "--image-size=32", "--resize=crop", "--mean=0.5,0.5,0.5"]
    assert predict("head", picture, *same)[0] == 0
    for name in ("head", "joined", "tuned"):
        for flag, value in (("--backbone", "resnet50"), ("--image-size", "224"), ("--std", "1,1,1")):
            status, _, err = predict(name, picture, flag, value)
            assert status == 1
            assert err.count("\n") == 1
            assert f"{flag} {value}: {served.runs_dir / name} was made with " in err
    status, _, err = predict("head", picture, "--weights", served.runs_dir / "tuned")
    assert status == 1
    assert "the encoder that can be had here is another one: " in err
    assert "weights.sha256 is" in err
    status, _, err = predict("tuned", picture, "--weights", "none")
    assert "has weights of its own" in err


def test_weights_that_came_from_a_file_are_asked_for_and_compared(
    served: Served, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (0, 1):
        torch.save(load_backbone(BACKBONE, weights="none", seed=seed).staged.model.state_dict(), f"{seed}.pth")
    flags = ["--backbone", BACKBONE, "--weights", "./0.pth", "--image-size", "32", "--device", "cpu"]
    assert run("embed", "--dataset", served.pictures, *flags)[0] == 0
    assert run("fit-head", "--clf", "centroid", "--name", "r")[0] == 0
    picture = served.pictures / "test" / "red" / "0.png"
    status, _, err = run("predict", "r", picture)
    assert status == 1
    assert "runs/r: its weights came from a file, 0.pth: give it by --weights FILE" in err
    assert run("predict", "r", picture, "--weights", "./0.pth")[0] == 0
    assert "weights.sha256 is" in run("predict", "r", picture, "--weights", "./1.pth")[2]


def test_drift_is_refused_and_a_run_of_older_days_asks_its_cache(served: Served, predict: Run, tmp_path: Path) -> None:
    picture = served.pictures / "test" / "red" / "0.png"
    copy = tmp_path / "head"
    shutil.copytree(served.runs_dir / "head", copy)
    (canary,) = read_canary(copy, n_encoders=1) or ()
    canary.features[2] *= 1.01
    write_canary(copy, [canary])
    status, out, err = predict(copy, picture)
    assert status == 1
    assert "today's stack makes other features than its head was fitted on: features of palette_clear.png" in err
    assert out == ""
    (copy / "canary.npz").unlink()
    assert "canary agrees" in predict(copy, picture)[2]
    status, _, err = predict(copy, picture, "--cache-dir", tmp_path)
    assert status == 0
    assert "CANARY NOT CHECKED" in err
    assert "no such cache" in err
    (copy / "canary.npz").write_bytes(b"nothing")
    assert "canary.npz: damaged" in predict(copy, picture)[2]


def test_runs_of_strangers_are_refused_in_one_line(served: Served, predict: Run, tmp_path: Path) -> None:
    picture = served.pictures / "test" / "red" / "0.png"

    def told(name: str, change: Callable[[dict[str, Any]], object]) -> str:
        copy = edited(served, tmp_path, name, change)
        status, out, err = predict(copy, picture, "--neighbors", 1)
        shutil.rmtree(copy)
        assert (status, out, err.count("error: ")) == (1, "", 1), err
        return err

    assert "is of another run" in told("head", lambda r: r["dataset"].update(class_names=["a", "b"]))
    assert "preprocessing.decoder is" in told("head", lambda r: r["encoder"]["preprocessing"].update(decoder="x"))
    assert "4,097 views" in told("views", lambda r: r["encoder"]["views"].update(views=4097))
    assert "not known here" in told("head", lambda r: r["encoder"].update(weights=[]))
    assert "does not tell of its encoder" in told("head", lambda r: r["cache"].update(parts=3))
    assert "which is no file's name" in told("head", lambda r: r["cache"].update(file="../../etc/passwd"))
    assert "other weights than the run recorded" in told("tuned", lambda r: r.update(model_sha256="0" * 64))
    assert "preprocessed here as it saw them" in told(
        "tuned", lambda r: r["encoder"]["preprocessing"].update(antialias=3)
    )
    assert "precision" in told("tuned", lambda r: r["params"].update(precision="int4"))


def test_usage(served: Served, predict: Run, tmp_path: Path) -> None:
    picture = served.pictures / "test" / "red" / "0.png"
    for flags, message in (
        (["--json"], "give --out FILE for the predictions"),
        (["--restart"], "begins --out FILE anew"),
        (["--out", "x.txt"], "give --format csv or jsonl"),
        (["--out", "x.csv", "--format", "table"], "give --format csv or jsonl"),
        (["--abstain", "2"], "expected a probability"),
        (["--top", "0"], "no whole number"),
        (["--workers", "-1"], "expected a whole number from 0 on"),
    ):
        status, out, err = predict("head", picture, *flags)
        assert (status, out, err.count("\n")) == (2, "", 1), err
        assert message in err
    status, _, err = predict("nothing", picture)
    assert status == 1
    assert "nothing: no folder of a run" in err
    status, _, err = predict("head", tmp_path / "gone.jpg")
    assert status == 1
    assert "gone.jpg: no such file or folder" in err
