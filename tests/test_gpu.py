"""What runs on a GPU, where torch finds one: features, heads, fine-tuning and what they promise there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import QUICK
from running import summary_of
from test_ranks import ROOT
from test_tuning_ranks import distance, torchrun

from featcache.cache.cache_file import Cache, find_caches
from featcache.embedding.job import Embedding
from featcache.models.backbones import load_backbone
from finetune.cached_rows import backbone_of
from heads.logistic import LogisticPath

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")

Embed = Callable[..., Embedding]
Run = Callable[..., tuple[int, str, str]]
CUDA = torch.device("cuda")
SMALL = [*QUICK, "--image-size", "64", "--per-class", "12", "--limit", "test=60"]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(run / "model.pth", weights_only=True)
    return found


@pytest.fixture
def embedded(run: Run, tmp_path: Path) -> Cache:
    summary_of(run, "embed", *SMALL, "--device", "cuda")
    (cache,) = find_caches(tmp_path / "features")
    return cache


@pytest.fixture
def little_memory() -> Iterator[Callable[[int], None]]:
    """Lets this process have so many bytes of the GPU's memory."""
    whole = torch.cuda.get_device_properties(CUDA).total_memory

    def limit(n_bytes: int) -> None:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + n_bytes) / whole)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def test_features_are_those_of_the_cpu(embed: Embed, folder: Path, tmp_path: Path) -> None:
    on_cpu = embed(folder, storage="float32", cache_dir=tmp_path / "cpu").run().cache.splits["train"].load()
    work = replace(embed(folder, storage="float32"), device=CUDA)
    np.testing.assert_allclose(work.run().cache.splits["train"].load(), on_cpu, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("engine", "precision"), [("eager", "bf16"), ("eager", "fp16"), ("compile", "bf16")])
def test_engines_pass_the_gate(run: Run, tmp_path: Path, engine: str, precision: str) -> None:
    flags = [*SMALL, "--device", "cuda", "--engine", engine, "--precision", precision]
    made = summary_of(run, "embed", *flags)
    (cache,) = find_caches(tmp_path / "features")
    assert cache.encoder["precision"] == precision
    assert cache.provenance["hardware"]["name"] == torch.cuda.get_device_name(CUDA)
    assert summary_of(run, "embed", *flags)["rows_reused"] == made["rows"]


def test_a_batch_that_memory_does_not_hold_is_halved(
    embed: Embed, folder: Path, tmp_path: Path, little_memory: Callable[[int], None]
) -> None:
    """As torch itself says it, not a stand-in."""
    large = load_backbone("resnet18", weights="none", image_size=256)
    work = embed(folder, backbone=large, storage="float32", batch_size=32, device=CUDA)
    expected = replace(work, cache_dir=tmp_path / "whole").run()
    assert expected.settled.batch_size == 32
    little_memory(200_000_000)
    found = work.run()
    assert found.settled.batch_size is not None
    assert found.settled.batch_size < 32
    each = [done.cache.splits["train"].load() for done in (found, expected)]
    np.testing.assert_allclose(*each, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fits", [True, False])
def test_the_logistic_path_comes_to_the_same_objective(fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the rows on the GPU, and with rows that go there in blocks."""
    if not fits:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (0, 0))
    rng = np.random.default_rng(0)
    y = np.arange(40_000) % 7
    X = (rng.normal(size=(len(y), 50)) + np.eye(7, 50)[y]).astype(np.float32)
    found, expected = (LogisticPath(Cs=(1e-3, 0.1, 10.0), device=device).fit(X, y) for device in ("cuda", "cpu"))
    np.testing.assert_allclose(found.coefs_, expected.coefs_, rtol=0.02, atol=2e-3)
    assert (found.certified_gaps_ < 1e-2).all()


def test_heads_score_as_on_the_cpu(run: Run, embedded: Cache) -> None:
    each = {}
    for device in ("cuda", "cpu"):
        done = summary_of(run, "fit-head", "--clf", "linear,mlp,logreg,knn,ridge", "--device", device)
        each[device] = {one["method"]: one["metrics"]["test"]["accuracy"] for one in done["runs"]}
    assert each["cuda"].keys() == each["cpu"].keys()
    for method, accuracy in each["cuda"].items():
        assert accuracy == pytest.approx(each["cpu"][method], abs=0.1), method  # 60 rows


WAYS = {
    "layer4": ["--unfreeze", "layer4", "--trunk-cache", "on"],
    "fp16": ["--unfreeze", "all", "--precision", "fp16", "--clip", "1"],
    "progressive": ["--progressive", "--phase-epochs", "1,1,1,1,1,1", "--precision", "bf16"],
    "scratch": ["--from-scratch", "--optimizer", "sgd", "--augment", "strong", "--mix", "cutmix", "--ema", "0.9"],
    "checkpointing": ["--unfreeze", "last:2", "--checkpointing", "--accumulate", "2", "--augment", "standard"],
    "compile": ["--unfreeze", "layer4", "--compile", "--trunk-cache", "off"],
    "holding": ["--unfreeze", "all", "--ewc", "1", "--wise-ft", "0.5", "--rehearse", "digits", "--bn", "eval"],
}


@pytest.mark.parametrize("way", WAYS)
def test_it_trains(run: Run, embedded: Cache, way: str) -> None:
    epochs = [] if way == "progressive" else ["--epochs", "2"]
    done = summary_of(
        run, "finetune", *WAYS[way], *epochs, "--device", "cuda", "--val-fraction", "0.2", "--batch-size", "16"
    )
    assert done["cost"]["device"] == "cuda"
    assert done["cost"]["peak_gpu_mb"] > 0
    assert done["frozen_sha256"]["before"] == done["frozen_sha256"]["after"]
    assert all(np.isfinite(entry["train_loss"]) for entry in done["history"])


def test_the_same_seed_gives_the_same_bits(run: Run, tmp_path: Path, embedded: Cache) -> None:
    flags = ["--unfreeze", "all", "--epochs", "2", "--device", "cuda", "--augment", "crop"]
    for name in ("one", "two"):
        summary_of(run, "finetune", *flags, "--name", name)
    one, two = (weights_of(tmp_path / "runs" / name) for name in ("one", "two"))
    assert all(torch.equal(two[name], tensor) for name, tensor in one.items())


def test_cached_maps_train_as_images_do(run: Run, tmp_path: Path, embedded: Cache) -> None:
    flags = ["--unfreeze", "layer4", "--epochs", "2", "--device", "cuda", "--precision", "fp32", "--optimizer", "sgd"]
    flags += ["--storage", "float32", "--lr", "1e-3"]
    for name in ("on", "off"):
        summary_of(run, "finetune", *flags, "--trunk-cache", name, "--name", name)
    on, off = (weights_of(tmp_path / "runs" / name) for name in ("on", "off"))
    assert distance(on, off) < 1e-5


def test_the_range_test_says_the_same_twice(run: Run, embedded: Cache) -> None:
    flags = ["--unfreeze", "layer4", "--device", "cuda", "--find-lr"]
    assert summary_of(run, "finetune", *flags) == summary_of(run, "finetune", *flags)


def test_predictions_are_those_of_the_cpu(run: Run, tmp_path: Path, embedded: Cache, folder: Path) -> None:
    summary_of(run, "fit-head", "--clf", "ridge", "--name", "head")
    each = []
    for device in ("cuda", "cpu"):
        status, out, err = run("predict", "head", folder, "--device", device, "--format", "jsonl")
        assert status == 0, err
        each.append([json.loads(line)["class"] for line in out.splitlines()])
    same = np.mean([a == b for a, b in zip(*each, strict=True)])
    assert same > 0.9, same


@pytest.mark.parametrize("statistics", ["eval", "train"])
def test_two_ranks_train_as_one_process_does(run: Run, tmp_path: Path, embedded: Cache, statistics: str) -> None:
    """On one GPU where there is no other; BatchNorm that trains takes its statistics over both."""
    flags = ["--unfreeze", "layer4", "--bn", statistics, "--epochs", "2", "--optimizer", "sgd", "--lr", "1e-3"]
    flags += ["--device", "cuda", "--precision", "fp32", "--batch-size", "20", "--trunk-cache", "off"]
    process = torchrun(tmp_path, ROOT / "bin/finetune", *flags, "--name", "two")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    summary_of(run, "finetune", *flags, "--name", "one")
    one, two = (weights_of(tmp_path / "runs" / name) for name in ("one", "two"))
    began = dict(backbone_of(embedded).staged.model.state_dict())
    shared = [name for name, tensor in began.items() if name in one and tensor.shape == one[name].shape]
    moved = distance({name: one[name] for name in shared}, {name: began[name] for name in shared})
    assert distance(two, one) < 0.02 * moved
