"""bin/finetune against forgetting: measured through caches, told in the run, resumed, refused where senseless."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import QUICK
from running import summary_of
from trained import timeless

from featcache.cache.cache_file import Cache, find_caches
from finetune import fisher, training
from heads.rows import load_rows
from heads.runs import read_run

Run = Callable[..., tuple[int, str, str]]
FEW = ("--val-fraction", "0.2", "--device", "cpu")
LIMIT = ("--forgetting-limit", "train=90,test=60")


def tune(run: Run, *arguments: object) -> dict[str, Any]:
    return summary_of(run, "finetune", *arguments, *FEW)


@pytest.fixture
def embedded(run: Run, tmp_path: Path) -> Cache:
    status, _, err = run("embed", *QUICK, "--limit", "test=30", "--device", "cpu", "--storage", "float32")
    assert status == 0, err
    (cache,) = find_caches(tmp_path / "features")
    return cache


def test_what_was_forgotten_is_told(run: Run, tmp_path: Path, embedded: Cache) -> None:
    """The numbers are those of a head that is fitted by hand on the two caches; the start's is made once."""
    flags = ("--unfreeze", "all", "--lr", "0.01", "--epochs", "1", "--measure-forgetting", "digits", *LIMIT)
    record = tune(run, *flags, "--name", "one", "--no-refit")
    found = record["forgetting"]
    assert read_run(tmp_path / "runs/one").record["forgetting"] == found
    assert (found["dataset"], found["clf"], found["n_test"]) == ("digits", "ridge", 60)
    assert found["n_train"] + found["n_val"] == 90
    assert found["start"]["encoder_fingerprint"] != found["tuned"]["encoder_fingerprint"]
    accuracies, hits = [], []
    for part in ("start", "tuned"):
        cache = Cache.open(tmp_path / "features/forgetting" / found[part]["cache"])
        rows = load_rows(cache, val_fraction=0.2)
        x, y = rows.dev.features.load().astype(np.float64), rows.dev.labels
        # ridge on targets of -1 and 1 with its penalty, solved in the plainest way
        from sklearn.linear_model import RidgeClassifier
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler().fit(x)
        head = RidgeClassifier(alpha=found[part]["params"]["alpha"]).fit(scaler.transform(x), y)
        right = head.predict(scaler.transform(rows.test.features.load().astype(np.float64))) == rows.test.labels
        hits.append(right)
        accuracies.append(right.mean())
        assert found[part]["accuracy"] == pytest.approx(right.mean(), abs=1e-9)
    assert found["difference"] == pytest.approx(accuracies[1] - accuracies[0])
    assert found["n_only_start"] == (hits[0] & ~hits[1]).sum()
    assert found["ci95"][0] <= found["difference"] <= found["ci95"][1]

    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "features/forgetting").glob("*.h5")}
    again = tune(run, *flags, "--seed", "3", "--forgetting-head", "logreg")["forgetting"]
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "features/forgetting").glob("*.h5")}
    assert before.items() < after.items()
    assert len(after) == 3
    assert (again["clf"], again["start"]["cache"]) == ("logreg", found["start"]["cache"])
    assert [cache.path for cache in find_caches(tmp_path / "features")] == [embedded.path]  # still the newest

    status, out, err = run("embed", *QUICK[:2], "--weights", tmp_path / "runs/one/model.pth", "--image-size", "32",
                         "--dataset", "digits", "--limit", LIMIT[1], "--engine", "eager", "--precision", "fp32",
                         "--storage", "float32", "--device", "cpu", "--cache-dir", "features/forgetting",
                         "--json")  # fmt: skip
    assert status == 0, err
    assert Path(json.loads(out)["cache"]).name == found["tuned"]["cache"]  # the one that was there


def test_a_head_alone_forgets_nothing(run: Run, embedded: Cache) -> None:
    status, out, err = run("finetune", "--epochs", "1", "--measure-forgetting", "digits", *LIMIT, *FEW, "--name", "h")
    assert status == 0, err
    found = read_run(Path("runs/h")).record["forgetting"]
    assert (found["difference"], found["n_only_start"], found["n_only_tuned"], found["p_value"]) == (0, 0, 0, 1)
    assert found["start"]["accuracy"] == found["tuned"]["accuracy"]
    assert "digits: accuracy of a refitted head on 60 test rows" in out
    assert "+0.0000" in out


ALL = (
    "--unfreeze", "layer4", "--epochs", "2", "--rehearse", "./pictures", "--rehearse-weight", "2", "--bn", "eval",
    "--l2-sp", "0.1", "--ewc", "50", "--wise-ft", "0.4,0.8",
)  # fmt: skip


@pytest.mark.slow
def test_an_interrupted_run_is_gone_on_with(
    run: Run, embedded: Cache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every term and the choice of a share: to the bit, also where it stopped in the second training.

    Its quicker twins are `test_checkpointing`, and resuming with a term in `test_penalties` and `test_rehearsal`.
    """
    monkeypatch.setattr(training, "CHECKPOINT_SHARE", float("inf"))
    monkeypatch.setattr(fisher, "FISHER_IMAGES", 8)
    whole = tune(run, *ALL, "--name", "whole")
    assert (whole["params"]["l2_sp"], whole["params"]["ewc"], whole["params"]["wise_ft"]) == (0.1, 50, [0.4, 0.8])
    assert whole["held"]["ewc"]["fisher"]["images"] == 8
    rehearsal = whole["held"]["rehearsal"]
    assert (rehearsal["dataset"], rehearsal["images"], rehearsal["weight"]) == ("pictures", 40, 2)
    assert "1000 classes" in whole["held"]["ewc"]["fisher"]["head"]
    assert whole["wise_ft"]["share"] in (0.4, 0.8)
    assert [c["share"] for c in whole["wise_ft"]["candidates"]] == [0.4, 0.8]
    assert all(entry["penalty"] > 0 for entry in whole["history"])
    right = training.save_checkpoint
    saves = iter((False, False, True))  # two epochs of the first training, one of the second

    def interrupted(*given: Any, **more: Any) -> None:
        right(*given, **more)
        if next(saves):
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "save_checkpoint", interrupted)
    assert run("finetune", *ALL, *FEW)[0] == 1
    monkeypatch.setattr(training, "save_checkpoint", right)
    assert "no unfinished training" in run("finetune", *ALL[:-1], "0.5", *FEW, "--resume")[2]
    torn = tune(run, *ALL, "--resume", "--name", "torn")
    assert timeless(torn["history"]) == timeless(whole["history"])
    assert (torn["metrics"], torn["wise_ft"]) == (whole["metrics"], whole["wise_ft"])
    models = [torch.load(f"runs/{name}/model.pth", weights_only=True) for name in ("whole", "torn")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_what_makes_no_sense_is_refused_in_one_line(run: Run, embedded: Cache) -> None:
    for flags, status, message in (
        (("--l2-sp", "0.1"), 2, "--l2-sp: the head alone trains"),
        (("--ewc", "1"), 2, "--ewc: the head alone trains"),
        (("--wise-ft", "auto"), 2, "--wise-ft: the head alone trains"),
        (("--from-scratch", "--l2-sp", "0.1"), 2, "--from-scratch and --l2-sp exclude one another"),
        (("--from-scratch", "--ewc", "1"), 2, "--from-scratch and --ewc exclude one another"),
        (("--from-scratch", "--wise-ft", "0.5"), 2, "--from-scratch and --wise-ft exclude one another"),
        (("--from-scratch", "--measure-forgetting", "digits"), 2, "have nothing to forget"),
        (("--unfreeze", "all", "--l2-sp", "0"), 2, "--l2-sp 0: expected a number above 0"),
        (("--unfreeze", "all", "--wise-ft", "half"), 2, "'half' is neither auto nor of the form"),
        (("--unfreeze", "all", "--wise-ft", "1.5"), 2, "from 0 (the start) to 1"),
        (("--forgetting-head", "ridge"), 2, "--forgetting-head is for --measure-forgetting"),
        (("--forgetting-limit", "test=3"), 2, "--forgetting-limit is for --measure-forgetting"),
        (("--rehearse-weight", "2"), 2, "--rehearse-weight is for --rehearse"),
        (("--rehearse", "digits"), 2, "--rehearse: the head alone trains"),
        (("--rehearse", "digits", "--unfreeze", "all"), 2, "statistics would be those of both sets"),
        (("--rehearse", "digits", "--unfreeze", "all", "--rehearse-weight", "0"), 2, "--rehearse-weight 0"),
        (("--measure-forgetting", "digitz"), 2, "digitz"),
        (("--measure-forgetting", "./nowhere"), 1, "nowhere"),
    ):
        found, out, err = run("finetune", *flags, *FEW, "--epochs", "1", "--json")
        line = err.splitlines()[-1]
        assert (found, line.startswith("finetune: error: "), message in line) == (status, True, True), err
        assert not out
    assert not list(Path("runs").glob("*-1"))
