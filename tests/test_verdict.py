"""The verdict: shares that add up to the work, and the flag that would help."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from making import noise

from featcache.embedding import throughput
from featcache.embedding.embed_rows import Filled
from featcache.embedding.job import Embedding
from featcache.embedding.throughput import STEPS, judge

Embed = Callable[..., Embedding]
Run = Callable[..., tuple[int, str, str]]
CUDA = torch.device("cuda")


def filled(*, waited: float = 0.0, **seconds: float) -> Filled:
    told = Filled(embedded=100, elapsed=2.0, waited=waited)
    told.seconds.update(seconds)
    return told


@pytest.mark.parametrize(
    ("times", "settings", "advice"),
    [
        ({"forward": 2, "decode": 0.1}, {"precision": "fp32"}, "--precision bf16"),
        ({"forward": 2, "decode": 0.1}, {"precision": "bf16"}, "--engine openvino"),
        ({"forward": 2, "decode": 0.1}, {"precision": "bf16", "engine": "openvino"}, "--device cuda"),
        ({"forward": 2, "decode": 0.1}, {"precision": "bf16", "device": CUDA}, "torchrun"),
        ({"forward": 2}, {"precision": "fp32", "left_open": ("precision", "engine")}, "--device cuda"),
        ({"forward": 1, "decode": 1, "waited": 1}, {"workers": 0}, "--workers 4"),
        ({"forward": 1, "decode": 4, "waited": 1}, {"workers": 4}, "smaller image files"),
        ({"forward": 1, "resize": 4, "waited": 1}, {"workers": 4}, "--image-size"),
        ({"forward": 1, "decode": 0.9, "waited": 1}, {"workers": 4, "device": CUDA}, "more cores"),
        ({"forward": 1, "write": 2}, {}, "--cache-dir"),
        ({"forward": 1, "transfer": 2}, {"device": CUDA}, "--batch-size"),
    ],
)
def test_the_bottleneck_is_named_with_what_would_help(
    embed: Embed, monkeypatch: pytest.MonkeyPatch, times: dict[str, float], settings: dict[str, object], advice: str
) -> None:
    monkeypatch.setattr(throughput, "n_cores", lambda: 4)
    monkeypatch.setattr(throughput, "fast_precision", lambda device: "bf16")
    told = judge(embed(noise(4), **settings), filled(**times))
    assert told is not None
    assert advice in told.bottleneck
    assert sum(told.shares.values()) == pytest.approx(1, abs=0.01)
    assert told.images_per_s == 50


def test_nothing_embedded_has_no_verdict(embed: Embed) -> None:
    assert judge(embed(noise(4)), Filled()) is None


@pytest.mark.parametrize("workers", [0, 2])
def test_a_real_build_is_judged(folder: Path, run: Run, workers: int) -> None:
    flags = ["--dataset", folder, "--backbone", "resnet18", "--weights", "none", "--image-size", "96"]
    status, out, err = run("embed", *flags, "--workers", workers, "--json")
    assert status == 0, err
    told = json.loads(out)["verdict"]
    assert tuple(told["shares"]) == STEPS
    assert sum(told["shares"].values()) == pytest.approx(1, abs=0.01)
    assert told["shares"]["forward"] > 0.3
    assert told["shares"]["decode"] > 0
    assert told["images_per_s"] > json.loads(out)["images_per_s"] > 0
    assert told["bottleneck"] in err
    status, out, _ = run("embed", *flags, "--json")
    assert json.loads(out)["verdict"] is None
