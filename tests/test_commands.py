"""The commands as people type them: what they make, what they print, and how they fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import BACKBONE, BLOCKS, QUICK, two_classes
from forking import HEED, Forked, embed_slowly, fork_command
from making import wait_for_rows
from PIL import Image
from selecting import SMALL_PROBE

from featcache.cache.cache_file import Cache
from heads.classifiers import CLASSIFIERS
from heads.saved import load_head

BIN = Path(__file__).resolve().parents[1] / "bin"
Run = Callable[..., tuple[int, str, str]]


def test_the_first_path_as_it_stands(run: Run, tmp_path: Path) -> None:
    status, out, _ = run("embed", *QUICK)
    assert status == 0
    assert "data set digits: 10 classes; images: 60 train, 359 test" in out
    assert "  classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9\n" in out
    assert "359 of its 1,797 images were carved off as test" in out
    assert "96 features in float16" in out
    (path,) = (tmp_path / "features").glob("*.h5")
    assert path.name.startswith("digits-timm_test_resnet-")
    status, out, _ = run("embed", *QUICK)
    assert f"features/{path.name} is complete: 419 rows (eager, " in out
    assert "nothing to do" in out
    status, out, _ = run("fit-head", "--clf", "logreg")
    assert status == 0
    assert f"cache features/{path.name}" in out
    assert "rows: 50 train, 10 val, 359 test" in out
    assert "95 % interval" in out
    run_folder = tmp_path / "runs" / "digits-timm_test_resnet-logreg-1"
    files = {"run.json", "predictions.npz", "head.npz", "canary.npz"}
    assert {entry.name for entry in run_folder.glob("*.[jn]*")} == files


def test_embedding_tells_classes_splits_and_images_of_several_classes_each_time(run: Run, tmp_path: Path) -> None:
    root = two_classes(tmp_path / "p")
    for split in ("train", "test"):
        (root / split).rename(root / f"seg_{split}")
    for i in range(2):  # one image in both classes; the same one twice in one class
        (root / "seg_train" / "a" / f"link{i}.png").symlink_to(root / "seg_test" / "b" / "0.png")
    for end in ("images/s", "nothing to do"):
        status, out, _ = run("embed", *QUICK[:-2], "--dataset", root)
        assert status == 0
        assert "  classes: a, b\n  splits: seg_train -> train, seg_test -> test\n" in out
        assert end in out
        assert "WARNING: 1 image is in several classes, as links or copies; bin/audit names them" in out


def test_of_many_classes_the_first_are_named(run: Run, tmp_path: Path) -> None:
    for i in range(13):
        (tmp_path / "p" / f"c{i:02}").mkdir(parents=True)
        for j in range(2):
            Image.new("L", (4, 4), 9 * i + j).save(tmp_path / "p" / f"c{i:02}" / f"{j}.png")
    out = run("embed", *QUICK[:-2], "--dataset", tmp_path / "p")[1]
    assert "13 classes" in out
    assert "  classes: c00, c01, c02, c03, c04, c05, c06, c07, c08, c09 and 3 more\n" in out
    assert "WARNING" not in out


def test_json_is_all_there_is_on_stdout(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for clf in ("linear", "mlp"):  # whose grids of a hundred epochs take most of the time
        monkeypatch.setitem(CLASSIFIERS, clf, SMALL_PROBE)
    status, out, err = run("embed", *QUICK, "--json")
    told = json.loads(out)
    assert status == 0
    assert "data set digits" in err
    counts = {"cache", "rows", "rows_reused", "rows_damaged", "seconds", "images_per_s"}
    assert set(told) == counts | {"engine", "precision", "batch_size", "fidelity", "verdict"}
    assert (told["rows"], told["rows_reused"]) == (419, 0)
    status, out, err = run("fit-head", "--clf", "ridge", "--name", "mine", "--json")
    record = json.loads(out)
    assert record == json.loads((tmp_path / "runs/mine/run.json").read_text())
    assert "accuracy" in err
    status, out, _ = run("fit-head", "--clf", "all", "--json", "--runs-dir", "others")
    assert len(json.loads(out)["runs"]) == 9
    assert len(list((tmp_path / "others").iterdir())) == 9


def test_a_run_says_all_that_the_schema_asks_for(run: Run, tmp_path: Path) -> None:
    run("embed", *QUICK)
    assert run("fit-head", "--clf", "logreg", "--name", "r", "--seed", 3)[0] == 0
    record = json.loads((tmp_path / "runs/r/run.json").read_text())
    keys = (
        "schema kind method command created seed dataset encoder source augment params selection converged "
        "trainable_params total_params frozen_sha256 metrics cost history environment"
    )
    assert set(keys.split()) <= set(record)
    assert (record["kind"], record["method"], record["seed"], record["source"]) == ("head", "logreg", 3, "cache")
    assert record["command"] == "fit-head --clf logreg --name r --seed 3"
    assert set(record["selection"]) == {
        *("candidates", "how", "refit", "at_grid_edge", "validation", "rule", "select_by", "class_weight", "nested"),
        "val_is_of_best_epoch",
    }
    assert record["params"]["C"] in [candidate["params"]["C"] for candidate in record["selection"]["candidates"]]
    metrics = "accuracy accuracy_ci95 top5 balanced_accuracy macro_f1 log_loss ece"
    assert set(record["metrics"]) == {"train", "val", "test"}
    intervals = {f"{name}_ci95" for name in ("balanced_accuracy", "macro_f1", "log_loss", "ece")}
    assert set(record["metrics"]["test"]) == set(metrics.split()) | intervals
    assert {"embed_s", "fit_s", "epoch_s", "peak_rss_mb", "device"} == set(record["cost"])
    assert record["total_params"] == 372_688 + record["trainable_params"]

    predictions = np.load(tmp_path / "runs/r/predictions.npz", allow_pickle=False)
    cache = Cache.open(next((tmp_path / "features").glob("*.h5")))
    test = cache.splits["test"]
    assert predictions["test_ids"].tolist() == list(test.ids)
    np.testing.assert_array_equal(predictions["test_labels"], test.labels)
    right = predictions["test_scores"].argmax(axis=1) == test.labels
    assert record["metrics"]["test"]["accuracy"] == pytest.approx(right.mean())
    head, meta = load_head(tmp_path / "runs/r/head.npz")
    np.testing.assert_array_equal(head.scores(test.load()), predictions["test_scores"])
    assert meta["class_names"] == list(cache.class_names)
    assert meta["encoder_fingerprint"] == cache.encoder_fingerprint


def test_a_data_set_can_be_named(run: Run) -> None:
    _, out, _ = run("embed", *QUICK, "--name", "numerals", "--json")
    assert json.loads(out)["cache"].startswith("features/numerals-timm_test_resnet-")
    assert run("fit-head", "--clf", "centroid", "--dataset", "numerals")[0] == 0
    assert run("fit-head", "--clf", "centroid", "--dataset", "digits")[0] == 1


def test_the_newest_matching_cache_is_taken(run: Run) -> None:
    run("embed", *QUICK)
    run("embed", *QUICK, "--seed", "1")
    run("embed", *QUICK, "--cut", "layer3")
    _, out, _ = run("fit-head", "--clf", "centroid", "--json")
    assert json.loads(out)["encoder"]["weights"]["seed"] == 1
    assert run("fit-head", "--clf", "centroid", "--backbone", BACKBONE, "--dataset", "digits")[0] == 0


def test_rows_are_chosen_at_fitting_as_at_embedding(run: Run) -> None:
    run("embed", *QUICK)
    chosen = ["--classes", "3,1,7", "--per-class", "4", "--limit", "test=20"]
    _, out, _ = run("fit-head", "--clf", "centroid", "--json", *chosen)
    record = json.loads(out)
    assert record["dataset"]["class_names"] == ["3", "1", "7"]
    assert [record["dataset"][f"n_{split}"] for split in ("train", "val", "test")] == [9, 3, 20]


def test_the_report_shows_classes_and_confusions(run: Run, tmp_path: Path) -> None:
    run("embed", *QUICK)
    _, out, _ = run("fit-head", "--clf", "ridge", "--report")
    assert "recall" in out
    assert "confusion matrix" in out
    pytest.importorskip("matplotlib")
    assert (tmp_path / "runs/digits-timm_test_resnet-ridge-1/confusion.png").read_bytes().startswith(b"\x89PNG")


def test_folders_of_the_same_name_are_told_apart(run: Run, tmp_path: Path) -> None:
    run("embed", *QUICK[:-2], "--dataset", two_classes(tmp_path / "x" / "images"))
    two_classes(tmp_path / "y" / "images")
    assert run("fit-head", "--clf", "centroid", "--dataset", "x/images")[0] == 0
    assert run("fit-head", "--clf", "centroid", "--dataset", "images")[0] == 0
    status, _, err = run("fit-head", "--clf", "centroid", "--dataset", "y/images")
    assert status == 1
    assert "no cache of vectors for --dataset y/images" in err


def test_class_names_are_no_markup_and_tables_are_not_cut(run: Run, tmp_path: Path) -> None:
    root = two_classes(tmp_path / "p")
    for split in ("train", "test"):
        (root / split / "a").rename(root / split / "[red]")
    run("embed", *QUICK[:-2], "--dataset", root)
    status, out, _ = run("fit-head", "--clf", "centroid", "--report")
    assert status == 0
    assert out.count("[red]") >= 3
    assert "…" not in out


@pytest.mark.parametrize("name", ["resnet50", "alexnet", pytest.param("vgg16", marks=pytest.mark.slow)])
def test_the_well_known_backbones_embed(run: Run, name: str) -> None:
    """VGG-16, of half a gigabyte, is slow; AlexNet, which ends as it does, is its quicker twin."""
    few = ["--limit", "train=10,test=4", "--classes", "0,1", "--batch-size", "8", "--image-size", "64"]
    status, out, _ = run("embed", "--backbone", name, "--weights", "none", "--json", *few)
    assert status == 0
    features = Cache.open(json.loads(out)["cache"]).splits["train"].load()
    assert features.shape == (10, {"resnet50": 2048}.get(name, 4096))
    assert np.ptp(features, axis=0).max() > 0


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_what_is_done(tmp_path: Path, end: signal.Signals) -> None:
    flags = [*BLOCKS, "--limit", "train=150,test=50"]
    process = Forked(embed_slowly, flags, folder=tmp_path)
    wait_for_rows(tmp_path, process)
    process.send_signal(end)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.endswith("embed: error: interrupted; what is done is kept: run the same command to go on\n")
    (partial,) = tmp_path.glob("features/.*.partial")
    out, _ = fork_command("embed", *flags, "--json", folder=tmp_path).communicate(timeout=60)
    assert json.loads(out)["rows"] == 200
    assert not partial.exists()


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_of_the_script_keeps_what_is_done(tmp_path: Path, end: signal.Signals) -> None:
    """bin/embed itself; its quicker twin is `test_an_interrupt_keeps_what_is_done`."""
    command = [sys.executable, "-c", HEED, BIN / "embed", "--backbone", "resnet18", "--weights", "none"]
    command += ["--batch-size", "32", "--image-size", "64", "--limit", "train=500,test=50"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment)
    limit = time.monotonic() + 100
    while not (partial := list(tmp_path.glob("features/.*.partial"))):
        assert process.poll() is None
        assert time.monotonic() < limit, "no file was begun within 100 s"
        time.sleep(0.02)
    time.sleep(0.5)
    process.send_signal(end)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.endswith("embed: error: interrupted; what is done is kept: run the same command to go on\n")
    assert partial[0].exists()
    done = subprocess.run(
        [*command, "--json"], cwd=tmp_path, capture_output=True, text=True, check=True, env=environment, timeout=200
    )
    assert json.loads(done.stdout)["rows"] == 550
    assert not partial[0].exists()
