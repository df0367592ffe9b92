"""bin/finetune: the third of three commands in a row, its runs, its refusals, and how it goes on after Ctrl-C."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import BACKBONE, QUICK
from running import summary_of
from trained import timeless

from featcache.cache.cache_file import Cache, find_caches
from featcache.models.backbones import load_backbone
from featcache.models.stages import StagedModel
from finetune import training
from finetune.cached_rows import TuningRows, backbone_of, tuning_rows
from finetune.forward import Forward, scores_of
from finetune.linear_start import linear_start
from finetune.new_head import replace_head, set_head
from finetune.planning import make_plan
from finetune.settings import Settings
from finetune.tuned_run import TunedRun, fine_tune
from heads.rows import load_rows
from heads.runs import read_run

Run = Callable[..., tuple[int, str, str]]
SMALL = [*QUICK, "--limit", "test=30"]
FEW = ("--val-fraction", "0.2", "--device", "cpu", "--trunk-cache", "off")
CPU = torch.device("cpu")


def tune(run: Run, *arguments: object) -> dict[str, Any]:
    return summary_of(run, "finetune", *arguments, *FEW)


pytestmark = pytest.mark.usefixtures("a_checkpoint_each_epoch")


@pytest.fixture
def embedded(run: Run, tmp_path: Path) -> Cache:
    status, _, err = run("embed", *SMALL, "--device", "cpu")
    assert status == 0, err
    (cache,) = find_caches(tmp_path / "features")
    return cache


def test_three_commands_in_a_row(run: Run, tmp_path: Path, embedded: Cache) -> None:
    """The same rows as the head, a run in the same schema, and weights that can be embedded with."""
    status, out, err = run("fit-head", "--clf", "logreg", "--val-fraction", "0.2", "--json")
    assert status == 0, err
    head = json.loads(out)
    tuned = tune(run, "--unfreeze", "layer4", "--epochs", "2", "--augment", "flip")
    assert tuned["kind"] == "finetune"
    assert tuned["method"] == "partial:layer4"
    assert set(head) - {"features", "calibration"} <= set(tuned)
    assert tuned["dataset"] == head["dataset"]
    assert tuned["encoder"] == head["encoder"]
    assert tuned["encoder_fingerprint"] == head["encoder_fingerprint"]
    assert (tuned["trainable_params"], tuned["total_params"]) == (268_810, 373_658)
    assert tuned["frozen_sha256"]["before"] == tuned["frozen_sha256"]["after"]
    best = tuned["params"]["epochs"]
    phases = [(entry["epoch"], entry["phase"]) for entry in tuned["history"]]
    assert phases == [(1, "layer4+head"), (2, "layer4+head"), *((e + 1, "refit:layer4+head") for e in range(best))]
    assert set(tuned["history"][0]) >= {
        "epoch", "phase", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "seconds",
    }  # fmt: skip
    folder = tmp_path / "runs/digits-timm_test_resnet-partial_layer4-1"
    files = {"run.json", "predictions.npz", "canary.npz", "model.pth", "history.png"}
    assert {path.name for path in folder.iterdir()} == files
    head_folder = tmp_path / "runs/digits-timm_test_resnet-logreg-1"
    assert sorted((tmp_path / "runs").iterdir()) == [head_folder, folder]
    finished = read_run(folder)
    assert finished.record == tuned
    theirs = read_run(head_folder).predictions
    for part in ("val_ids", "test_ids", "val_labels", "test_labels"):
        np.testing.assert_array_equal(finished.predictions[part], theirs[part])
    accuracy = (finished.predictions["val_scores"].argmax(1) == finished.predictions["val_labels"]).mean()
    assert accuracy == tuned["metrics"]["val"]["accuracy"] == max(e["val_accuracy"] or 0 for e in tuned["history"])

    weights = folder / "model.pth"
    status, out, err = run("embed", *SMALL, "--weights", weights, "--precision", "fp32", "--storage", "float32")
    assert status == 0, err
    features = next(c for c in find_caches(tmp_path / "features") if c.provenance["weights"] == "model.pth")
    final = load_backbone(BACKBONE, weights=str(weights), image_size=32).staged.head
    with torch.no_grad():
        logits = final(torch.from_numpy(load_rows(features).test.features.load())).numpy()
    np.testing.assert_allclose(logits, finished.predictions["test_scores"], rtol=1e-3, atol=1e-4)


def test_refitting_changes_the_final_model_and_not_what_was_chosen(run: Run, embedded: Cache) -> None:
    flags = ("--lr", "0.01", "--epochs", "3")
    first, second = tune(run, *flags), tune(run, *flags, "--no-refit")
    assert (first["selection"]["refit"], second["selection"]["refit"]) == (True, False)
    assert first["metrics"]["val"] == second["metrics"]["val"]
    assert first["params"] == second["params"]
    assert timeless(first["history"])[:3] == timeless(second["history"])
    assert len(first["history"]) == 3 + first["params"]["epochs"]
    assert first["metrics"]["test"]["log_loss"] != second["metrics"]["test"]["log_loss"]


def test_a_dry_run_tells_the_plan_and_makes_nothing(run: Run, tmp_path: Path, embedded: Cache) -> None:
    plan = tune(run, "--dry-run")
    assert (plan["trainable_params"], plan["frozen_params"]) == (970, 372_688)
    assert tune(run, "--dry-run", "--unfreeze", "all")["trainable_params"] == 373_658
    status, out, _ = run("finetune", "--unfreeze", "layer4", "--lr-decay", "3", "--lr", "0.9", "--dry-run", *FEW)
    assert status == 0
    assert "268,810 parameters train, 104,848 are frozen, 373,658 in all" in out
    assert "0.3" in out
    assert "up to layer3" in out
    status, out, _ = run("finetune", "--progressive", "--phase-epochs", "2", "--dry-run", *FEW)
    assert "layer3 to head" in out
    assert out.count("up to") == 5
    assert not (tmp_path / "runs").exists()


def test_errors_are_one_line(run: Run, embedded: Cache) -> None:
    for flags, status, message in (
        (("--unfreeze", "layer5"), 2, "unknown stage in --unfreeze 'layer5'"),
        (("--unfreeze", "all", "--freeze", "early"), 2, "exclude one another"),
        (("--dataset", "cifar10"), 1, "no cache for --dataset cifar10"),
        (("--backbone", "resnet50"), 1, "no cache for --backbone resnet50"),
        (("--lr-per-stage", "layer4"), 2, "is not of the form layer4=3e-4"),
        (("--lr", "-1"), 2, "--lr -1"),
        (("--batch-size", "0"), 2, "neither auto nor a whole number"),
        (("--workers", "-1"), 2, "--workers -1"),
        (("--name", "a/b"), 2, "--name"),
        (("--resume",), 1, "no unfinished training"),
        (("--init-head", "gone"), 1, "gone: no folder of a run"),
        (("--patience", "0"), 2, "--patience 0"),
        (("--device", "tpu"), 2, "--device tpu"),
    ):
        found, out, err = run("finetune", *flags, "--val-fraction", "0.2", "--json")
        line = err.splitlines()[-1]
        assert found == status, err
        assert line.startswith("finetune: error: ")
        assert message in line
        assert not out


def test_an_interrupted_run_is_gone_on_with(
    run: Run, tmp_path: Path, embedded: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first training and in the second; the run is the one that was never interrupted, to the bit."""
    flags = ("--progressive", "--unfreeze", "layer4", "--epochs", "3", "--augment", "crop", "--optimizer", "sgd")
    tune(run, *flags, "--name", "whole")
    right = training.save_checkpoint
    for n_saved in (2, 4):
        saves = iter(range(1, n_saved + 1))

        def interrupted(*given: Any, saves: Any = saves, **more: Any) -> None:
            right(*given, **more)
            if next(saves) == n_saved:  # noqa: B023
                raise KeyboardInterrupt

        monkeypatch.setattr(training, "save_checkpoint", interrupted)
        status, _, err = run("finetune", *flags, *FEW, "--name", f"torn{n_saved}")
        assert (status, "with --resume to go on" in err) == (1, True)
        monkeypatch.setattr(training, "save_checkpoint", right)
        other = run("finetune", *flags, *FEW, "--resume", "--seed", "1")
        assert (other[0], "unfinished there: finetune --progressive" in other[2]) == (1, True)
        tune(run, *flags, "--resume", "--name", f"torn{n_saved}")
        whole, torn = (read_run(tmp_path / "runs" / name) for name in ("whole", f"torn{n_saved}"))
        assert timeless(torn.record["history"]) == timeless(whole.record["history"])
        assert torn.record["metrics"] == whole.record["metrics"]
        for part, values in whole.predictions.items():
            np.testing.assert_array_equal(torn.predictions[part], values)
        models = [
            torch.load(tmp_path / f"runs/{name}/model.pth", weights_only=True) for name in ("whole", f"torn{n_saved}")
        ]
        assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not list((tmp_path / "runs").glob(".*"))


@pytest.mark.parametrize(("embedding", "tolerance"), [((), 5e-3), (("--storage", "float32"), 1e-5)])
def test_a_linear_head_is_where_lp_ft_starts(
    run: Run, tmp_path: Path, embedding: tuple[str, ...], tolerance: float
) -> None:
    """Before the first step the labels are the cached head's, and the logits are within what the cache rounded."""
    run("embed", *SMALL, "--device", "cpu", "--precision", "fp32", *embedding)
    (cache,) = find_caches(tmp_path / "features")
    status, _, err = run("fit-head", "--clf", "ridge", "--no-refit", "--name", "head", "--val-fraction", "0.2")
    assert status == 0, err
    rows = load_rows(cache, val_fraction=0.2, rows_only=True)
    staged = backbone_of(cache).staged
    replace_head(staged, 10, seed=0)
    set_head(staged, linear_start(tmp_path / "runs/head", cache=cache, rows=rows, staged=staged))
    forward = Forward(staged, cut=5, source_cut=0, settings=Settings(), device=CPU)
    logits = scores_of(forward, tuning_rows(cache, rows, device=CPU).test, batch_size=16)
    expected = read_run(tmp_path / "runs/head").predictions["test_scores"]
    np.testing.assert_array_equal(logits.argmax(1), expected.argmax(1))
    np.testing.assert_allclose(logits, expected, atol=tolerance * np.abs(expected).max())
    record = tune(run, "--init-head", "head", "--unfreeze", "layer4", "--epochs", "1", "--lr", "1e-5")
    assert (record["method"], record["selection"]["refit"], record["plan"]["batch_norm"]) == ("lp-ft", False, "eval")


def test_heads_that_lp_ft_cannot_start_from_are_refused(run: Run, embedded: Cache) -> None:
    for flags, message in (
        (("--clf", "knn", "--no-refit"), "no linear layer"),
        (("--clf", "ridge"), "fit it with --no-refit"),
        (("--clf", "ridge", "--no-refit", "--seed", "3"), "fitted on other rows"),
    ):
        name = f"h{len(message)}"
        assert run("fit-head", *flags, "--name", name, "--val-fraction", "0.2")[0] == 0
        status, _, err = run("finetune", "--init-head", name, *FEW)
        assert (status, message in err, err.count("\n")) == (1, True, 1), err
    tune(run, "--epochs", "1", "--name", "tuned")
    assert "of the kind finetune" in run("finetune", "--init-head", "tuned", *FEW)[2]


def found_model(cache: Cache) -> StagedModel:
    staged = backbone_of(cache).staged
    replace_head(staged, len(cache.class_names), seed=0)
    return staged


def tuned(
    cache: Cache, change: Callable[[TuningRows], TuningRows] = lambda rows: rows
) -> tuple[TunedRun, dict[str, Any]]:
    rows = load_rows(cache, val_fraction=0.2, rows_only=True)
    staged = found_model(cache)
    plan = make_plan([s.name for s in staged.stages], staged.head_name, lr=0.03, epochs=4)
    found = fine_tune(staged, plan, change(tuning_rows(cache, rows, device=CPU)), settings=Settings(), device=CPU)
    return found, {name: tensor.clone() for name, tensor in staged.model.state_dict().items()}


def test_the_final_model_is_trained_from_the_start_on_train_and_validation(cache: Cache) -> None:
    """For as many epochs as were best, at the rates of the plan; the first training leaves nothing behind."""
    found, weights = tuned(cache)
    staged = found_model(cache)
    rows = tuning_rows(cache, load_rows(cache, val_fraction=0.2, rows_only=True), device=CPU)
    training.train(
        staged,
        found.plan,
        rows.train.joined(rows.val),
        settings=found.settings,
        validation=None,
        device=CPU,
        stop_after=found.chosen.best_epoch,
    )
    assert all(torch.equal(weights[name], tensor) for name, tensor in staged.model.state_dict().items())


def test_test_labels_decide_nothing(cache: Cache) -> None:
    """Permuted, they change the test metrics, and no epoch, weight or score."""

    def permuted(rows: TuningRows) -> TuningRows:
        labels = 1 - rows.test.labels
        return replace(rows, test=replace(rows.test, labels=labels))

    (first, weights), (second, others) = tuned(cache), tuned(cache, permuted)
    assert timeless(first.history) == timeless(second.history)
    assert first.chosen.best_epoch == second.chosen.best_epoch
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    np.testing.assert_array_equal(first.predictions["test_scores"], second.predictions["test_scores"])
    assert first.metrics["val"] == second.metrics["val"]
    assert first.metrics["test"].accuracy == pytest.approx(1 - second.metrics["test"].accuracy)


def test_validation_labels_decide_the_epoch(cache: Cache) -> None:
    """The converse: what is chosen does follow validation."""

    def permuted(rows: TuningRows) -> TuningRows:
        return replace(rows, val=replace(rows.val, labels=1 - rows.val.labels))

    first, second = tuned(cache)[0], tuned(cache, permuted)[0]
    losses = [[entry["val_loss"] for entry in each.chosen.history] for each in (first, second)]
    assert losses[0] != losses[1]
