"""bin/finetune with a trunk cache, and its run as the weights of bin/embed: from one command to the next."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conftest import BACKBONE, QUICK, draw
from running import summary_of

from featcache.cache.cache_file import find_caches
from featcache.common.errors import UserError
from featcache.models.backbones import load_backbone
from heads.rows import load_rows
from heads.runs import read_run

Run = Callable[..., tuple[int, str, str]]
FEW = ("--val-fraction", "0.2", "--device", "cpu")


@pytest.fixture
def embedded(run: Run) -> None:
    summary_of(run, "embed", *QUICK, "--limit", "test=30", "--device", "cpu", "--engine", "eager")


def test_finetune_embed_and_fit_a_head(run: Run, tmp_path: Path, embedded: None) -> None:
    """Maps are cached once and found again; the tuned backbone's features are those that its own head was scored on."""
    flags = ("--unfreeze", "layer4", "--epochs", "1", "--no-refit", *FEW)
    on = summary_of(run, "finetune", *flags, "--trunk-cache", "on", "--name", "first")
    assert (on["source"], on["trunk_cache"]["cut"], on["trunk_cache"]["epochs"]) == ("cache", "layer3", 1)
    assert on["cost"]["embed_s"] == on["trunk_cache"]["embed_s"] > 0
    assert any("all epochs train from" in note for note in on["notes"])
    again = summary_of(run, "finetune", *flags, "--trunk-cache", "on", "--name", "second")
    assert (again["trunk_cache"]["file"], again["cost"]["embed_s"]) == (on["trunk_cache"]["file"], 0.0)
    assert again["metrics"] == on["metrics"]
    assert again["cache"] == on["cache"]
    off = summary_of(run, "finetune", *flags, "--trunk-cache", "off", "--name", "images")
    assert (off["source"], off["trunk_cache"], off["dataset"]) == ("images", None, on["dataset"])
    assert off["metrics"]["val"]["log_loss"] == pytest.approx(on["metrics"]["val"]["log_loss"], rel=0.02)

    subset = ("--per-class", "6", "--limit", "test=30", "--device", "cpu")
    exactly = ("--engine", "eager", "--precision", "fp32", "--storage", "float32")
    record = summary_of(run, "embed", "--backbone", BACKBONE, "--weights", "runs/first", *subset, *exactly)
    cache = next(
        each for each in find_caches(tmp_path / "features") if str(each.path) == f"{tmp_path}/{record['cache']}"
    )
    assert cache.provenance["weights"] == "first/model.pth"
    assert cache.encoder["preprocessing"] == on["encoder"]["preprocessing"]  # 32 pixels, which nobody said again
    tuned = load_backbone(BACKBONE, weights=str(tmp_path / "runs/first"))
    assert cache.encoder["weights"] == {"sha256": tuned.weights["sha256"]}
    assert tuned.weights["sha256"] != on["encoder"]["weights"]["sha256"]
    assert (
        load_backbone(BACKBONE, weights=str(tmp_path / "runs/first/model.pth")).weights["sha256"]
        == (tuned.weights["sha256"])
    )
    with torch.no_grad():
        logits = tuned.staged.head(torch.from_numpy(load_rows(cache).test.features.load())).numpy()
    expected = read_run(tmp_path / "runs/first").predictions["test_scores"]
    np.testing.assert_allclose(logits, expected, rtol=1e-2, atol=1e-2 * np.abs(expected).max())

    head = summary_of(run, "fit-head", "--clf", "ridge", "--val-fraction", "0.2", "--name", "head")
    assert head["encoder"] == cache.encoder
    more = summary_of(run, "finetune", "--epochs", "1", "--no-refit", *FEW, "--name", "more")  # from there on
    assert more["cache"]["weights"] == "first/model.pth"

    for folder, backbone, message in (
        ("runs/head", BACKBONE, "the run of a head (ridge), which has no backbone"),
        ("runs/first", "resnet34", f"a run of {BACKBONE}, not of resnet34: give --backbone {BACKBONE}"),
        (
            "runs/",
            BACKBONE,
            "a folder without run.json; expected a weights file, or the run of a fine-tuning",
        ),
    ):
        status, _, err = run("embed", "--backbone", backbone, "--weights", folder, "--per-class", "6")
        assert status == 1
        assert message in err.splitlines()[-1]


def test_a_model_that_loads_nothing_without_a_version(run: Run, tmp_path: Path) -> None:
    """MNASNet: tuned and refitted, embedded by, predicted by and exported; its file is the library's to load, too."""
    safetensors = pytest.importorskip("safetensors.torch")
    model = ("--backbone", "mnasnet0_5", "--image-size", "32", "--device", "cpu", "--precision", "fp32")
    summary_of(run, "embed", *model, "--weights", "none", "--per-class", "5", "--limit", "test=10", "--engine", "eager")
    tuned = summary_of(
        run, "finetune", "--unfreeze", "last:1", "--epochs", "1", *FEW, "--trunk-cache", "off", "--name", "it"
    )
    assert tuned["selection"]["refit"]
    state = torch.load(tmp_path / "runs/it/model.pth", weights_only=True)
    library = torchvision.models.mnasnet0_5(num_classes=10)
    library.load_state_dict(state)
    summary_of(run, "embed", *model, "--weights", "runs/it", "--per-class", "2", "--limit", "test=10")
    (tmp_path / "images").mkdir()
    draw(tmp_path / "images/a.png", hue=0, seed=0)
    status, _, err = run("predict", "it", "images", "--out", "labels.csv", "--device", "cpu")
    assert status == 0, err
    summary_of(run, "export", "it", "--out", "it.safetensors")
    names: dict[str, Any] = {"path": "it.safetensors"}
    with safetensors.safe_open("it.safetensors", "pt") as file:
        exec(file.metadata()["load"], names)
    found = names["model"].state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_views_and_their_absence_are_told(run: Run, embedded: None) -> None:
    flags = ("--unfreeze", "layer4", "--epochs", "1", "--no-refit", *FEW, "--augment", "flip")
    status, _, err = run("finetune", *flags, "--trunk-cache", "on")
    assert status == 2
    assert "--trunk-cache on: --augment flip changes pixels anew in every epoch" in err.splitlines()[-1]
    record = summary_of(run, "finetune", *flags, "--views", "2")
    assert (record["augment"], record["params"]["augment"]) == ("2 cached views", "flip")
    assert record["trunk_cache"]["n_views"] == 3
    assert any("2 cached views stand for augmentation" in note for note in record["notes"])


def test_auto_says_why_and_a_full_disk_is_no_end(run: Run, embedded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune import trunk_choice
    from finetune.trunk_cost import TrunkCost

    flags = ("--unfreeze", "layer4", "--epochs", "2", "--no-refit", *FEW)
    status, out, err = run("finetune", *flags, "--dry-run")
    assert status == 0, err
    assert "trunk cache off: the maps of layer3 would take " in out
    dear = {cut: TrunkCost(seconds=9.0, order=(0, 2, 3, 1)) for cut in range(1, 6)}
    monkeypatch.setattr(trunk_choice, "trunk_costs", lambda *_given, **_more: dear)
    monkeypatch.setattr("finetune.trunk_cache.Embedding.run", _fails)
    status, out, err = run("finetune", *flags, "--name", "fallen")
    assert status == 0, err
    assert "trunk cache on: " in out
    assert "trunk cache off after all: a feature of 7e+04" in out
    assert read_run(Path("runs/fallen")).record["source"] == "images"
    status, _, err = run("finetune", *flags, "--trunk-cache", "on")
    assert (status, "a feature of 7e+04" in err) == (1, True)


def test_an_interrupted_run_is_gone_on_with(run: Run, embedded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the trunk cache that it began with, whatever auto would decide by then; to the same bits."""
    from finetune import training, trunk_choice

    flags = ("--unfreeze", "layer4", "--epochs", "2", "--no-refit", *FEW)
    monkeypatch.setattr(training, "CHECKPOINT_SHARE", float("inf"))
    monkeypatch.setattr(trunk_choice, "BUILDING_S", -100.0)  # so that auto is on
    whole = summary_of(run, "finetune", *flags, "--name", "whole")
    assert whole["source"] == "cache"
    right = training.save_checkpoint

    def interrupted(*given: Any, **more: Any) -> None:
        right(*given, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "save_checkpoint", interrupted)
    assert run("finetune", *flags)[0] == 1
    monkeypatch.setattr(training, "save_checkpoint", right)
    monkeypatch.setattr(trunk_choice, "OPENING_S", 1000.0)  # so that it is off
    assert summary_of(run, "finetune", *flags, "--dry-run")
    gone_on = summary_of(run, "finetune", *flags, "--resume", "--name", "torn")
    assert any("trunk cache on, as the training was begun" in note for note in gone_on["notes"])
    assert [entry["train_loss"] for entry in gone_on["history"]] == [entry["train_loss"] for entry in whole["history"]]
    models = [torch.load(f"runs/{name}/model.pth", weights_only=True) for name in ("whole", "torn")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def _fails(*_given: object, **_more: object) -> None:
    raise UserError("a feature of 7e+04 is beyond float16: take --storage float32")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("[]", "run.json cannot be read (a list"),
        ("{", "run.json cannot be read"),
        ("[" * 100_000, "run.json cannot be read"),
        ("{}", "no run, which has no backbone"),
        ('{"kind": "finetune", "encoder": 3}', "no backbone that it tells of"),
        (
            json.dumps({"kind": "finetune", "encoder": {"backbone": BACKBONE}}),
            "does not tell how images were preprocessed",
        ),
        (
            json.dumps({"kind": "finetune", "encoder": {"backbone": BACKBONE, "preprocessing": 3}}),
            "does not tell how images",
        ),
    ],
)
def test_a_strangers_run_is_one_line(tmp_path: Path, record: str, message: str) -> None:
    (tmp_path / "run.json").write_text(record)
    with pytest.raises(UserError) as caught:
        load_backbone(BACKBONE, weights=str(tmp_path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
