"""bin/export: a run in one file, which tells all it takes to use it and gives the run's own probabilities."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import BACKBONE, QUICK, draw

from featcache.commands import embed as embed_command
from featcache.sources.decoding import decode
from featcache.sources.preprocessing import Preprocessing
from heads import fit_head_command
from heads.evidence.metrics import softmax
from heads.kernel_heads import LandmarkHead, SupportVectorHead
from heads.neighbors import NeighborHead, normalized
from heads.predictors import Head, LinearHead, MLPHead
from heads.runs import read_run
from heads.saved import load_head, save_head
from heads.serving import export_command, exporting, torch_file
from heads.serving.loaded_run import LoadedRun, load_run

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

EXACT = ["--engine", "eager", "--precision", "fp32", "--storage", "float32", "--device", "cpu"]
KINDS = ("linear", "scores", "mlp", "neighbors", "support_vectors", "landmarks")
Export = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of each kind on the pooled maps of the network's first stage, which exports in a second, and one on all."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert embed_command.main([*QUICK, *EXACT, "--limit", "test=30"]) == 0
        assert fit_head_command.main(["--clf", "ridge", "--calibrate", "--name", "whole"]) == 0
        assert embed_command.main([*QUICK, *EXACT, "--limit", "test=30", "--cut", "stem"]) == 0
        assert fit_head_command.main(["--clf", "ridge", "--calibrate", "--pool", "--name", "linear"]) == 0
        both = [flag for cache in (folder / "features").glob("*.h5") for flag in ("--cache", str(cache))]
        assert fit_head_command.main(["--clf", "centroid", "--pool", *both, "--name", "joined"]) == 0
    linear, meta = load_head(folder / "runs/linear/head.npz")
    assert isinstance(linear, LinearHead)
    for kind, head in other_heads(linear).items():
        shutil.copytree(folder / "runs/linear", folder / "runs" / kind)
        save_head(folder / "runs" / kind / "head.npz", head, meta)
    return folder / "runs"


def other_heads(linear: LinearHead) -> dict[str, Head]:
    """Drawn at random, with the scaler of a fitted one."""
    rng = np.random.default_rng(0)
    n_classes, n_features = linear.weight.shape
    scaler = {"mean": linear.mean, "scale": linear.scale}

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    hidden = {"hidden_weight": normal(8, n_features) / 8, "hidden_bias": normal(8)}
    labels = np.arange(60) % n_classes
    return {
        "scores": dataclasses.replace(linear, probabilistic=False),
        "mlp": MLPHead(**scaler, **hidden, weight=normal(n_classes, 8), bias=normal(n_classes)),
        "neighbors": NeighborHead(
            bank=normalized(np.abs(normal(60, n_features))), labels=labels, weights=np.ones(60), k=7, temperature=0.1,
            n_classes=n_classes,
        ),
        "support_vectors": SupportVectorHead(
            **scaler, vectors=normal(30, n_features), dual_coef=rng.normal(size=(n_classes - 1, 30)),
            intercept=rng.normal(size=n_classes * (n_classes - 1) // 2), counts=np.full(n_classes, 3),
            present=np.arange(n_classes), gamma=0.01, n_classes=n_classes,
        ),
        "landmarks": LandmarkHead(
            **scaler, landmarks=normal(20, n_features), weight=rng.normal(size=(n_classes, 20)),
            bias=rng.normal(size=n_classes), gamma=0.01,
        ),
    }  # fmt: skip


@pytest.fixture
def export(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Export:
    """Runs the command and gives its JSON; with ``fails`` its exit status and stderr."""

    def call(run: str | Path, out: str, *flags: object, fails: bool = False) -> dict[str, Any]:
        arguments = [run if "/" in str(run) else runs / run, "--out", tmp_path / out, "--json", *flags]
        status = export_command.main([str(argument) for argument in arguments])
        told, err = capsys.readouterr()
        if fails:
            assert status
            assert err.count("\n") == 1 or "export: error" in err.splitlines()[-1]
            return {"status": status, "error": err.splitlines()[-1]}
        assert status == 0, err
        return json.loads(told)

    return call


def pixels(n: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, size, size, 3)).astype(np.uint8)


def as_input(folder: Path, images: Sequence[np.ndarray]) -> np.ndarray:
    """Images as the graph of a run takes them where it holds no preprocessing."""
    preprocessing = Preprocessing.from_json(read_run(folder).record["encoder"]["preprocessing"])
    return (preprocessing.fit(images).expand(-1, 3, -1, -1).float() / 255).contiguous().numpy()


def loaded(folder: Path) -> LoadedRun:
    return load_run(folder, device=torch.device("cpu"), batch_size=17)


def own_scores(run: LoadedRun, images: Sequence[np.ndarray]) -> np.ndarray:
    """Those of the run itself, of 17 images at most."""
    features, _ = run.features([run.backbone.preprocessing.fit(images)[:, None]])
    return run.scores(features)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_head_gives_its_own_scores(kind: str, runs: Path, export: Export, tmp_path: Path) -> None:
    told = export(kind, "it.onnx")
    assert all(each["largest"] <= 1e-5 and not each["other_labels"] for each in told["parity"])
    session = onnxruntime.InferenceSession(tmp_path / "it.onnx")
    probabilistic = kind in ("linear", "neighbors", "mlp")
    names = [output.name for output in session.get_outputs()]
    assert names == (["probabilities", "logits"] if probabilistic else ["scores"])
    assert session.get_inputs()[0].shape == ["batch", 3, 32, 32]
    assert session.get_outputs()[0].shape == ["batch", 10]
    run = loaded(runs / kind)
    for n in (1, 3, 17):
        found = session.run(None, {"images": as_input(runs / kind, pixels(n))})
        scores = own_scores(run, pixels(n))
        np.testing.assert_allclose(found[-1], scores, rtol=1e-4, atol=1e-4)
        assert (found[-1].argmax(1) == scores.argmax(1)).all()
        if probabilistic:
            np.testing.assert_allclose(found[0], softmax(scores), atol=1e-5)


def test_three_formats_give_the_same(runs: Path, export: Export, tmp_path: Path) -> None:
    images = as_input(runs / "whole", pixels(3))
    expected = softmax(own_scores(loaded(runs / "whole"), pixels(3)))
    export("whole", "it.pt2")
    extra = {"featcache.json": ""}
    module = torch.export.load(tmp_path / "it.pt2", extra_files=extra).module()
    for n in (1, 3, 17):
        assert module(torch.from_numpy(as_input(runs / "whole", pixels(n))))[0].shape == (n, 10)
    np.testing.assert_allclose(module(torch.from_numpy(images))[0].numpy(), expected, atol=1e-5)
    assert json.loads(extra["featcache.json"])["class_names"][3] == "3"

    safetensors = pytest.importorskip("safetensors")
    export("whole", "it.safetensors")
    with safetensors.safe_open(tmp_path / "it.safetensors", "pt") as file:
        texts = file.metadata()
    names: dict[str, Any] = {"path": tmp_path / "it.safetensors"}
    exec(texts["load"], names)
    told = json.loads(texts["preprocessing"])
    mean, std = (torch.tensor(told[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        found = names["model"]((torch.from_numpy(images) - mean) / std).softmax(1)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def assert_told(texts: dict[str, str], record: dict[str, Any]) -> None:
    """A file's metadata is what its run records."""
    assert json.loads(texts["class_names"]) == record["dataset"]["class_names"]
    assert json.loads(texts["preprocessing"]) == record["encoder"]["preprocessing"]
    accuracy, test = json.loads(texts["test_accuracy"]), record["metrics"]["test"]
    assert accuracy == {"accuracy": test["accuracy"], "ci95": test["accuracy_ci95"], "n_images": 30}
    assert (texts["run"], texts["method"], texts["backbone"]) == ("linear", "ridge", BACKBONE)
    assert json.loads(texts["temperature"]) == record["calibration"]["temperature"]
    assert texts["weights_sha256"] == record["encoder"]["weights"]["sha256"]
    assert json.loads(texts["input"])["shape"] == ["batch", "height", "width", 3]


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """Pictures of four sizes; one is the network's own."""
    for i, size in enumerate([(48, 40), (33, 97), (32, 32), (200, 31)]):
        draw(tmp_path / "drawn" / f"{i}.png", hue=i % 3, seed=i, size=size)
    return tmp_path / "drawn"


def test_preprocessing_in_a_torch_graph_is_that_of_the_run(runs: Path, export: Export, drawn: Path) -> None:
    told = export("linear", "it.pt2", "--with-preprocessing", "--check", drawn)
    assert [each["n_images"] for each in told["parity"]] == [4, 4, 4, 4]
    assert all(each["largest"] <= 1e-5 and not each["other_labels"] for each in told["parity"])


def test_preprocessing_in_onnx_as_the_readme_uses_it(runs: Path, export: Export, drawn: Path, tmp_path: Path) -> None:
    """By a process that imports neither torch nor featcache."""
    told = export("linear", "insects.onnx", "--with-preprocessing", "--check", drawn)
    assert not any(each["other_labels"] for each in told["parity"])
    session = onnxruntime.InferenceSession(tmp_path / "insects.onnx")
    assert session.get_inputs()[0].shape == ["batch", "height", "width", 3]
    run = loaded(runs / "linear")
    for n, size in ((1, 90), (3, 20), (17, 32)):
        found = session.run(["probabilities"], {"images": pixels(n, size)})[0]
        np.testing.assert_allclose(found, softmax(own_scores(run, pixels(n, size))), atol=0.01)
    assert_told(session.get_modelmeta().custom_metadata_map, run.record)
    assert str(Path(torch.__file__).parent).encode() not in (tmp_path / "insects.onnx").read_bytes()

    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    (example,) = (part.split("```")[0] for part in readme.split("```python\n")[1:] if "onnxruntime" in part)
    draw(tmp_path / "picture.jpg", hue=1, seed=0)
    ask = "\nimport sys\nassert not {'torch', 'featcache'} & set(sys.modules)\nprint(json.dumps([name, float(share)]))"
    answer = subprocess.run(
        [sys.executable, "-c", example + ask], capture_output=True, check=True, cwd=tmp_path, timeout=200
    )
    name, share = json.loads(answer.stdout)
    probabilities = softmax(own_scores(run, [decode((tmp_path / "picture.jpg").read_bytes())]))
    assert name == str(probabilities.argmax())
    assert share == pytest.approx(probabilities.max(), abs=0.01)


def test_nothing_is_lost_or_half_written(
    runs: Path, export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "it.pt2").write_text("mine")
    assert "give --force" in export("linear", "it.pt2", fails=True)["error"]
    with monkeypatch.context() as patch:
        patch.setattr(torch_file, "reader", lambda path: lambda images: np.full((len(images), 10), 0.1, np.float32))
        assert "(tolerance 1e-05), so nothing was written" in export("linear", "it.pt2", "--force", fails=True)["error"]
    assert (tmp_path / "it.pt2").read_text() == "mine"
    export("linear", "it.pt2", "--force")
    assert (tmp_path / "it.pt2").read_bytes().startswith(b"PK")
    assert [path.name for path in tmp_path.iterdir()] == ["it.pt2"]

    def meanwhile(*given: Any) -> Any:
        (tmp_path / "new.pt2").write_text("another process's")
        return compared(*given)

    compared = exporting._compared
    monkeypatch.setattr(exporting, "_compared", meanwhile)
    assert export("linear", "new.pt2")["file"] == str(tmp_path / "new-1.pt2")
    assert (tmp_path / "new-1.pt2").read_bytes().startswith(b"PK")
    assert (tmp_path / "new.pt2").read_text() == "another process's"


def test_what_cannot_be_exported_is_told(
    runs: Path, export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def error(*arguments: Any) -> tuple[int, str]:
        told = export(*arguments, fails=True)
        return told["status"], told["error"]

    assert "ends in .onnx" in error("linear", "it.bin")[1]
    assert error("linear", "it.pt2", "--format", "onnx")[0] == 2
    assert error("whole", "it.safetensors", "--with-preprocessing")[0] == 2
    assert "take --format onnx or torch" in error("neighbors", "it.safetensors")[1]
    assert "the features of 2 backbones, and a file holds one" in error("joined", "it.onnx")[1]
    assert "no folder of a run" in error(tmp_path / "nothing", "it.onnx")[1]
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert "broken.png" in error("linear", "it.pt2", "--check", tmp_path / "broken.png")[1]
    (tmp_path / "empty").mkdir()
    assert "no images found" in error("linear", "it.pt2", "--check", tmp_path / "empty")[1]
    find = exporting.importlib.util.find_spec
    monkeypatch.setattr(
        exporting.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    assert "onnxscript is not installed: pip install 'featcache[export]'" in error("linear", "it.onnx")[1]
    assert not list(tmp_path.glob("*it.*"))
