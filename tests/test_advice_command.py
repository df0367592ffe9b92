"""bin/finetune --find-lr, --lr auto and --probe, and the table of what changed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_finetune_command import FEW, SMALL, tune
from trained import timeless

from finetune import advice_command, finetune_command
from finetune.rate_finder import find_rates
from heads.runs import read_run

Run = Callable[..., tuple[int, str, str]]
# Layer4 and the head by plain SGD, from where a loss of random weights falls for sure.
LEARNS = ("--unfreeze", "layer4", "--optimizer", "sgd", "--batch-size", "16", "--bn", "train", "--lr-decay", "4")


@pytest.fixture(autouse=True)
def embedded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache, and range tests of few steps."""
    monkeypatch.setattr(advice_command, "find_rates", partial(find_rates, n_steps=24))
    status, _, err = run("embed", *SMALL, "--device", "cpu")
    assert status == 0, err


def test_rates_are_found_and_nothing_is_trained(run: Run, tmp_path: Path) -> None:
    found = tune(run, *LEARNS, "--find-lr")
    assert set(found) == {
        "suggested", "rates", "losses", "smoothed", "steepest", "valley", "minimum_tenth", "ended",
    }  # fmt: skip
    assert found["suggested"] == float(format(found["steepest"], ".2g"))
    assert len(found["rates"]) == len(found["losses"])
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["digits-timm_test_resnet-discriminative-lr.png"]
    status, out, err = run("finetune", *LEARNS, "--find-lr", *FEW)
    assert status == 0, err
    assert f"--lr {found['suggested']:.2g}" in out
    assert "layer4" in out
    for rate in (found["steepest"], found["valley"], found["minimum_tenth"]):
        assert f"{rate:.3g}" in out
        assert f"{rate / 4:.3g}" in out


def test_lr_auto_trains_at_what_is_found(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with that rate given by hand, to the bit; the run tells what was found, and --resume finds it again."""
    flags = (*LEARNS, "--epochs", "1", "--no-refit")
    auto = tune(run, *flags, "--lr", "auto", "--name", "auto")
    rate = auto["range_test"]["suggested"]
    assert auto["plan"]["rates"] == {"layer4": rate / 4, "fc": rate}
    assert {path.name for path in (tmp_path / "runs/auto").iterdir()} == {
        "run.json", "predictions.npz", "canary.npz", "model.pth", "history.png", "rates.png",
    }  # fmt: skip
    assert read_run(tmp_path / "runs/auto").record == auto
    by_hand = tune(run, *flags, "--lr", repr(rate), "--name", "hand")
    assert "range_test" not in by_hand
    assert timeless(by_hand["history"]) == timeless(auto["history"])
    models = [torch.load(tmp_path / f"runs/{name}/model.pth", weights_only=True) for name in ("auto", "hand")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])

    right = advice_command.find_and_tell
    seen = []

    def counted(*given: Any, **more: Any) -> Any:
        seen.append(right(*given, **more))
        return seen[-1]

    def interrupted(entry: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(advice_command, "find_and_tell", counted)
    with monkeypatch.context() as patch:
        patch.setattr(finetune_command, "_epoch_teller", lambda *given, **more: interrupted)
        assert run("finetune", *flags, "--lr", "auto", *FEW)[0] == 1
    resumed = tune(run, *flags, "--lr", "auto", "--resume")
    assert resumed["range_test"] == auto["range_test"]
    assert seen[0] == seen[1]


def test_a_probe_suggests_a_flag_that_works(run: Run, tmp_path: Path) -> None:
    probe = tune(run, "--probe")
    assert list(probe["gradient_norms"]) == ["stem", "layer1", "layer2", "layer3", "layer4"]
    assert not (tmp_path / "runs").exists()
    status, out, err = run("finetune", "--probe", *FEW)
    assert status == 0, err
    assert probe["flag"] in out
    assert "random final layer" in out
    assert tune(run, *probe["flag"].split(), "--dry-run")["trainable_params"] > 5130


def test_a_run_tells_what_changed(run: Run) -> None:
    record = tune(run, "--unfreeze", "layer4", "--epochs", "1")
    changes = {change["stage"]: change for change in record["changes"]}
    assert list(changes) == ["stem", "layer1", "layer2", "layer3", "layer4", "fc"]
    for name in ("stem", "layer1", "layer2", "layer3"):
        assert (changes[name]["weight_change"], changes[name]["gradient_norm"]) == (0.0, None)
    for name in ("layer4", "fc"):
        assert changes[name]["weight_change"] > 0
        assert changes[name]["gradient_norm"] > 0
    assert sum(change["n_parameters"] for change in changes.values()) == record["total_params"]
    status, out, _ = run("finetune", "--epochs", "1", *FEW)
    assert status == 0
    assert "what changed" in out


def test_contradictions_are_one_line(run: Run) -> None:
    for flags, message in (
        (("--find-lr", "--dry-run"), "--dry-run and --find-lr exclude one another"),
        (("--find-lr", "--probe"), "--find-lr and --probe exclude one another"),
        (("--find-lr", "--resume"), "--find-lr and --resume exclude one another"),
        (("--lr", "auto", "--dry-run"), "--lr auto and --dry-run exclude one another"),
        (("--lr", "auto", "--lr-per-stage", "layer4=1e-3"), "--lr auto and --lr-per-stage exclude one another"),
        (("--lr", "fast"), "neither auto nor a number"),
    ):
        status, out, err = run("finetune", *flags, *FEW, "--json")
        line = err.splitlines()[-1]
        assert (status, message in line, out) == (2, True, ""), err


def test_where_no_rate_is_found_nothing_is_trained(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flat(*given: Any, **more: Any) -> Any:
        from finetune.rate_finder import _suggested

        return _suggested([1e-3, 1e-2, 1e-1], [1.0, 1.0, 1.0], limit=4.0, ended="highest rate")

    monkeypatch.setattr(advice_command, "find_rates", flat)
    status, out, err = run("finetune", "--lr", "auto", *FEW, "--json")
    assert (status, out) == (1, "")
    assert "no rate at which the loss falls" in err.splitlines()[-1]
    assert not (tmp_path / "runs").exists()
