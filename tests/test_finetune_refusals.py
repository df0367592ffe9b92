"""What bin/finetune does not take once it has begun: a device that is too small, a model, other weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BACKBONE
from test_finetune_command import FEW, SMALL, tune

from featcache.models.backbones import load_backbone
from finetune.forward import Forward

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("error", "flags", "message"),
    [
        (
            AssertionError("expected size 512==512,\nstride 9==1 at dim=1"),
            ("--compile",),
            (
                "--compile: torch.compile does not take this model here "
                "(expected size 512==512, stride 9==1 at dim=1): leave it out"
            ),
        ),
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
            (),
            (
                "cpu has too little memory for batches of 32: take a smaller --batch-size with --accumulate, "
                "--checkpointing, or --precision bf16"
            ),
        ),
    ],
)
def test_what_the_device_does_not_take_is_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, flags: Any, message: str
) -> None:
    def fails(self: Forward, inputs: torch.Tensor) -> torch.Tensor:
        raise error

    assert run("embed", *SMALL, "--device", "cpu")[0] == 0
    monkeypatch.setattr(Forward, "__call__", fails)
    status, _, err = run("finetune", "--unfreeze", "layer4", *FEW, *flags, "--epochs", "1")
    assert (status, err.splitlines()[-1]) == (1, f"finetune: error: {message}")


def test_other_weights_than_the_caches_are_refused(run: Run, tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    """A weights file that changed since: its features would be others."""
    root = make_folder({"train": {"red": 6, "green": 6}, "test": {"red": 3, "green": 3}})
    state = load_backbone(BACKBONE, weights="none").staged.model.state_dict()
    torch.save(state, tmp_path / "mine.pth")
    flags = ("--backbone", BACKBONE, "--weights", "mine.pth", "--image-size", "32", "--dataset", root)
    assert run("embed", *flags, "--device", "cpu")[0] == 0
    record = tune(run, "--epochs", "1")
    assert record["cache"]["weights"] == "mine.pth"
    state["layer1.0.conv1.weight"][0] += 1
    torch.save(state, tmp_path / "mine.pth")
    status, _, err = run("finetune", "--epochs", "1", *FEW)
    assert (status, "was made with other weights of timm/test_resnet" in err) == (1, True)
    record = tune(run, "--epochs", "1", "--from-scratch")
    assert (record["method"], record["cache"]["weights"]) == ("scratch", "none")
