"""Engines: each computes what fp32 eager does, as exactly as its precision allows, on one fixed shape."""

from __future__ import annotations

import faulthandler
import gc
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch
from conftest import BACKBONE
from forking import Forked
from torch import Tensor
from tuning import tiny

from featcache.common.errors import UserError
from featcache.engines import backends
from featcache.engines.backends import Forward, prepare, unavailable
from featcache.engines.fidelity import compare
from featcache.models.backbones import Backbone, load_backbone
from featcache.sources.preprocessing import Preprocessing

CPU = torch.device("cpu")
WAYS = [
    ("eager", "bf16"),
    ("eager", "fp16"),
    ("compile", "fp32"),
    ("compile", "bf16"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
]


def pictures(n: int, channels: int = 3, seed: int = 0) -> Tensor:
    """Smooth noise, (n, channels, 32, 32) uint8, channels last."""
    coarse = torch.rand(n, channels, 4, 4, generator=torch.Generator().manual_seed(seed)) * 255
    smooth = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")
    return smooth.to(torch.uint8).contiguous(memory_format=torch.channels_last)


@pytest.fixture(scope="module", params=["tiny", pytest.param(BACKBONE, marks=pytest.mark.slow)])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    """Four small blocks; a real network, which compilers and quantisers take half a minute for, is slow."""
    if request.param == BACKBONE:
        return load_backbone(BACKBONE, weights="none", image_size=32)
    preprocessing = Preprocessing(
        image_size=32, resize_size=36, interpolation="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3
    )
    return Backbone("tiny", tiny(dropout=0.0), preprocessing, {"name": "none", "sha256": "0" * 64, "seed": 5})


def ready(backbone: Backbone, engine: str, precision: str, example: Tensor, cut: int | None = None) -> Forward:
    if reason := unavailable(engine, precision, CPU):
        pytest.skip(str(reason))
    return prepare(
        backbone.staged.trunk(cut),
        backbone.preprocessing,
        engine=engine,
        precision=precision,
        device=CPU,
        example=example,
        calibration=pictures(24, seed=9),
    )


def test_eager_in_fp32_is_the_trunk_to_the_bit(backbone: Backbone) -> None:
    images = pictures(4)
    with torch.inference_mode():
        expected = backbone.staged.trunk()(backbone.preprocessing.normalise(images))
    assert torch.equal(ready(backbone, "eager", "fp32", images)(images), expected)


@pytest.mark.parametrize(("engine", "precision"), WAYS)
def test_an_engine_is_as_faithful_as_its_precision_allows(backbone: Backbone, engine: str, precision: str) -> None:
    images = pictures(4)
    before = {name: value.clone() for name, value in backbone.staged.model.state_dict().items()}
    reference = ready(backbone, "eager", "fp32", images)
    forward = ready(backbone, engine, precision, images)
    told = compare(reference(images).numpy(), forward(images).numpy(), precision=precision)
    assert told.is_faithful, told
    assert (told.relative_max == 0) is False, "another precision that changes nothing was not used"
    assert forward(images).dtype == torch.float32
    assert torch.equal(forward(images), forward(images))
    assert all(torch.equal(value, before[name]) for name, value in backbone.staged.model.state_dict().items())


@pytest.mark.parametrize(("engine", "precision"), [("eager", "fp32"), ("compile", "bf16"), ("openvino", "bf16")])
def test_grey_batches_are_colour_batches_of_one_colour(backbone: Backbone, engine: str, precision: str) -> None:
    grey = pictures(4, channels=1)
    forward = ready(backbone, engine, precision, grey.expand(-1, 3, -1, -1))
    assert torch.equal(forward(grey), forward(grey.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("engine", ["eager", "compile", "openvino"])
def test_maps_come_out_in_their_shape(backbone: Backbone, engine: str) -> None:
    images = pictures(2)
    cut = backbone.staged.cut_after("layer2")
    with torch.inference_mode():
        expected = backbone.staged.trunk(cut)(backbone.preprocessing.normalise(images))
    found = ready(backbone, engine, "fp32", images, cut)(images)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_rows_do_not_depend_on_their_neighbours(backbone: Backbone) -> None:
    for engine, precision in (("eager", "bf16"), ("compile", "bf16"), ("openvino", "bf16")):
        images, others = pictures(4), pictures(4, seed=5)
        forward = ready(backbone, engine, precision, images)
        mixed = torch.cat([images[:2], others[2:]]).contiguous(memory_format=torch.channels_last)
        assert torch.equal(forward(mixed)[:2], forward(images)[:2]), engine


def test_what_is_not_there_is_named_with_its_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "featcache[openvino]" in str(unavailable("openvino", "bf16", CPU))
    assert "C++ compiler" in str(unavailable("compile", "bf16", CPU))
    assert "--engine openvino" in str(unavailable("eager", "int8", CPU))
    assert unavailable("eager", "bf16", CPU) is None


def test_openvino_on_a_gpu_and_in_fp16_is_refused() -> None:
    pytest.importorskip("openvino")
    assert "--device cpu" in str(unavailable("openvino", "bf16", torch.device("cuda")))
    assert "fp16" in str(unavailable("openvino", "fp16", CPU))


def test_signals_reach_a_process_whose_network_was_let_go_in_another_thread(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    process = Forked(let_go_and_signal, folder=tmp_path)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, "reached\n"), err


class Means(torch.nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((2, 3))


def let_go_and_signal() -> None:
    from featcache.engines import openvino_backend

    faulthandler.enable()  # so that signals have a stack of their own, as under pytest
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    held = [openvino_backend.prepare(Means(), precision="fp32", example=images, images=None)]

    def let_go() -> None:
        held.clear()
        gc.collect()

    thread = threading.Thread(target=let_go)
    thread.start()
    thread.join()
    signal.signal(signal.SIGUSR1, lambda *_: print("reached"))
    os.kill(os.getpid(), signal.SIGUSR1)


def test_a_compiler_that_fails_is_an_error_of_one_line(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_settings: object) -> object:
        def call(_images: Tensor) -> Tensor:
            raise RuntimeError("g++: error: unrecognised\ncommand line option")

        return call

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(UserError, match="does not take this model here .*: take --engine eager"):
        ready(backbone, "compile", "bf16", pictures(2))
