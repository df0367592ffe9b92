"""What `auto` chooses: what is there already, else what is done first; never what is not faithful."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import BACKBONE
from making import interrupted, noise, numbered

from featcache.build.plan import PlannedRows
from featcache.cache.cache_file import Cache
from featcache.common import user_cache
from featcache.common.errors import UserError
from featcache.embedding.job import Embedding
from featcache.embedding.row_digests import planned_rows
from featcache.engines import backends, engine_choice, fidelity_gate
from featcache.engines.engine_choice import settle
from featcache.engines.fidelity import TOLERANCE
from featcache.engines.fidelity_gate import Gate, Prepared
from featcache.models.stages import StagedModel

Embed = Callable[..., Embedding]
Run = Callable[..., tuple[int, str, str]]
AUTO = {"engine": "auto", "precision": "auto", "batch_size": None}
SMALL = ["--backbone", BACKBONE, "--weights", "none", "--image-size", "32"]


@pytest.fixture
def speeds() -> dict[str, tuple[float, float]]:
    """Images/s and seconds of set-up that the stand-in engines have."""
    return {"eager": (100.0, 0.0), "compile": (180.0, 20.0), "openvino": (300.0, 10.0)}


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, speeds: dict[str, tuple[float, float]]) -> list[str]:
    """Every engine is there and computes what eager does, at the rates above; gives the engines that are set up."""
    engines: list[str] = []
    passed = Gate.passed

    def with_speed(self: Gate, candidate: Embedding, *, timed: bool) -> Prepared:
        engines.append(candidate.engine)
        rate, setup_s = speeds[candidate.engine]
        prepared = passed(self, replace(candidate, engine="eager"), timed=timed)
        return replace(prepared, images_per_s=rate, setup_s=setup_s)

    monkeypatch.setattr(Gate, "passed", with_speed)
    monkeypatch.setattr(engine_choice, "unavailable", lambda engine, precision, device: None)
    monkeypatch.setattr(engine_choice, "fast_precision", lambda device: "bf16")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "memory"))
    return engines


def settled(embed: Embed, n_train: int) -> Embedding:
    return settle(replace(embed(noise(n_train), **AUTO), rows=embed(noise(n_train)).plan.splits))


@pytest.mark.parametrize(
    ("n_train", "engine", "expected"),
    [
        (100, "eager", ["eager"]),  # a second of work is worth no set-up
        (1500, "eager", ["eager"]),  # 15 s by eager; 8 s of set-up and 7.5 s of work are guessed for OpenVINO
        (3000, "openvino", ["eager", "openvino"]),
    ],
)
def test_the_size_of_the_set_decides(
    embed: Embed, tried: list[str], n_train: int, engine: str, expected: list[str]
) -> None:
    chosen = settled(embed, n_train)
    assert (chosen.engine, chosen.precision, chosen.batch_size) == (engine, "bf16", 16)
    assert tried == expected
    assert chosen.prepared is not None


def test_what_a_set_up_took_is_remembered(
    embed: Embed, tried: list[str], speeds: dict[str, tuple[float, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds["openvino"] = (110.0, 60.0)  # worse than the guess; 27.4 s of work beats eager's 30 now that it is set up
    assert settled(embed, 3000).engine == "openvino"
    assert tried == ["eager", "openvino"]
    tried.clear()
    assert settled(embed, 3000).engine == "eager"
    assert tried == ["eager"], "the same disappointment twice"
    monkeypatch.setitem(engine_choice.GUESSES, "compile", (0.1, 1.5))
    assert settled(embed, 3000).engine == "compile"
    notes = list((user_cache.folder() / "notes").iterdir())
    assert len(notes) == 2
    for path in notes:
        path.write_text("{")  # what can't be read is guessed anew
    tried.clear()
    assert settled(embed, 3000).engine == "compile"
    assert tried[0] == "eager"
    assert tried[-1] == "compile"


def test_an_engine_that_promises_less_than_one_that_was_tried_is_not_set_up(embed: Embed, tried: list[str]) -> None:
    settled(embed, 20_000)
    assert tried == ["eager", "openvino"]  # compile's guess is 30 s + 154 s, and OpenVINO takes 67 s


def test_a_finished_cache_of_any_engine_is_taken(embed: Embed, tried: list[str]) -> None:
    work = embed(noise(100), engine="compile", precision="bf16", batch_size=None)
    path = work.run().cache.path
    tried.clear()
    done = replace(work, **AUTO).run()
    assert (done.cache.path, done.rows_reused, done.settled.engine, tried) == (path, 112, "compile", [])
    assert done.verdict is None


def test_a_finished_fp32_cache_is_better_than_what_auto_would_make(embed: Embed, tried: list[str]) -> None:
    path = embed(noise(100)).run().cache.path
    tried.clear()
    assert embed(noise(100), **AUTO).run().cache.path == path
    assert tried == []


def test_an_interrupted_build_is_gone_on_with_as_it_was_begun(
    embed: Embed, tried: list[str], speeds: dict[str, tuple[float, float]]
) -> None:
    speeds["eager"] = (10.0, 0.0)  # so what is left would be worth OpenVINO's set-up
    work = embed(noise(700), engine="eager", precision="bf16", batch_size=24)
    interrupted(work, rows=400)
    notes: list[str] = []
    done = replace(work, **AUTO).run(on_note=notes.append)
    assert (done.settled.engine, done.settled.batch_size) == ("eager", 24)
    assert done.cache.provenance["batch"] == 24
    assert "openvino" not in tried
    assert any("going on with eager" in note for note in notes)


def test_rows_of_another_cache_weigh_as_work_that_is_done(
    embed: Embed, tried: list[str], speeds: dict[str, tuple[float, float]]
) -> None:
    speeds["eager"] = (10.0, 0.0)  # so all of the set would be worth OpenVINO's set-up
    embed(numbered(np.arange(490)), **{**AUTO, "engine": "eager", "precision": "bf16"}).run()
    tried.clear()
    done = embed(numbered(np.arange(500)), **AUTO).run()
    assert (done.settled.engine, done.rows_reused) == ("eager", 502)  # with the 12 test rows
    assert tried == ["eager"]


def test_an_unfaithful_precision_is_refused_or_passed_over(embed: Embed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_choice, "fast_precision", lambda device: "bf16")
    monkeypatch.setitem(TOLERANCE, "bf16", 0.9999999999)
    work = embed(noise(40), precision="bf16")
    with pytest.raises(UserError, match=r"--precision bf16 is not faithful here .*cosine at least 0\.99.*fp32"):
        work.run()
    assert not work.cache_dir.exists()
    notes: list[str] = []
    done = replace(work, precision="auto").run(on_note=notes.append)
    assert done.settled.precision == "fp32"
    assert any("not faithful" in note for note in notes)
    assert done.cache.provenance["engine"]["fidelity"] is None


def test_the_fidelity_is_recorded_and_printed(folder: Path, run: Run) -> None:
    asked = ["--dataset", folder, *SMALL, "--precision", "bf16", "--engine", "eager"]
    status, out, err = run("embed", *asked, "--json")
    assert status == 0, err
    told = json.loads(out)
    fidelity = Cache.open(Path(told["cache"])).provenance["engine"]["fidelity"]
    assert told["fidelity"] == fidelity
    assert fidelity["images"] == fidelity_gate.IMAGES
    assert TOLERANCE["bf16"] <= fidelity["cosine_min"] < 1
    assert f"cosine at least {fidelity['cosine_min']:.5f}" in err
    assert (told["engine"], told["precision"], told["batch_size"]) == ("eager", "bf16", 16)


def test_what_was_asked_for_and_is_not_there_is_an_error(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    for asked in (["--engine", "openvino"], ["--precision", "int8"]):
        status, _, err = run("embed", "--dataset", folder, *SMALL, *asked)
        assert status == 1
        assert "featcache[openvino]" in err.splitlines()[-1]


def test_int8_is_another_encoder_for_other_calibration_images(folder: Path, embed: Embed) -> None:
    def encoder() -> dict[str, Any]:
        work = embed(folder, engine="openvino", precision="int8")
        return dict(replace(work, rows=whole_rows(work)).plan.encoder)

    first, again = encoder(), encoder()
    assert first["calibration"]["images"] == 40
    assert again == first
    (folder / "train/red/000.jpg").unlink()
    assert encoder()["calibration"] != first["calibration"]


@pytest.mark.slow
def test_int8_records_what_it_was_calibrated_with(folder: Path, embed: Embed) -> None:
    """Builds caches; its quicker twin is `test_int8_is_another_encoder_for_other_calibration_images`."""
    pytest.importorskip("nncf")
    done = embed(folder, engine="openvino", precision="int8").run()
    assert done.cache.encoder["calibration"]["images"] == 40
    fewer = replace(embed(folder, engine="openvino", precision="int8"), rows=None).run()
    assert fewer.rows_reused == 52
    (folder / "train/red/000.jpg").unlink()
    other = embed(folder, engine="openvino", precision="int8").run()
    assert other.cache.encoder["calibration"] != done.cache.encoder["calibration"]
    assert other.rows_reused == 0, "other ranges make other features"


def test_damaged_images_do_not_stand_at_the_gate(folder: Path, embed: Embed) -> None:
    for path in sorted(folder.rglob("*.jpg"))[::2]:
        path.write_bytes(b"no picture")
    assert 4 < len(Gate(embed(folder, precision="bf16")).images) < fidelity_gate.IMAGES
    assert embed(folder, precision="bf16").run().rows_damaged == 26


class _Limited(torch.nn.Module):
    """A trunk on a device whose memory holds only so many images."""

    def __init__(self, trunk: torch.nn.Module, most: int) -> None:
        super().__init__()
        self.trunk, self.most = trunk, most

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return self.trunk(images)


def test_no_set_up_is_wasted_on_a_precision_that_eager_fails(
    embed: Embed, tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOLERANCE, "bf16", 0.9999999999)
    done = embed(noise(250), **AUTO).run()
    assert (done.settled.engine, done.settled.precision) == ("eager", "fp32")
    assert tried == ["eager", "eager"]
    assert done.verdict is not None
    assert "--precision" not in done.verdict.bottleneck
    assert "--engine" not in done.verdict.bottleneck


def test_an_engine_that_was_refused_is_not_tried_again(
    embed: Embed, tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = Gate.passed

    def refusing(self: Gate, candidate: Embedding, *, timed: bool) -> Prepared:
        prepared = passed(self, candidate, timed=timed)
        if candidate.engine != "eager":
            raise UserError(f"no {candidate.engine} for this model")
        return prepared

    monkeypatch.setattr(Gate, "passed", refusing)
    for expected in (["eager", "openvino", "compile"], ["eager"]):
        assert settled(embed, 20_000).engine == "eager"
        assert tried == expected
        tried.clear()


@pytest.mark.parametrize(
    ("engine", "precision"),
    [
        ("eager", "bf16"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (("openvino", "bf16"), ("compile", "bf16"), ("openvino", "int8"))
        ),
    ],
)
def test_a_resumed_build_equals_an_uninterrupted_one(embed_blocks: Embed, engine: str, precision: str) -> None:
    """By eager in bf16; other engines, whose quicker twin it is, are slow to set up."""
    if reason := backends.unavailable(engine, precision, torch.device("cpu")):
        pytest.skip(str(reason))
    work = embed_blocks(noise(80), engine=engine, precision=precision, batch_size=4)
    whole = replace(work, cache_dir=work.cache_dir / "whole").run().cache
    interrupted(replace(work, rows=whole_rows(work)), rows=40)
    resumed = work.run()
    assert 0 < resumed.rows_reused < 92
    for name, split in whole.splits.items():
        np.testing.assert_array_equal(resumed.cache.splits[name].load(), split.load())


def whole_rows(work: Embedding) -> dict[str, PlannedRows]:
    return planned_rows(work.dataset, work.ranks)


@pytest.mark.parametrize("precision", ["bf16", pytest.param("int8", marks=pytest.mark.slow)])
def test_json_is_alone_on_stdout_whatever_the_engine_says(folder: Path, run: Run, precision: str) -> None:
    """In bf16; int8, whose quicker twin it is, is slow to calibrate."""
    pytest.importorskip("nncf")
    flags = ("--engine", "openvino", "--precision", precision)
    status, out, err = run("embed", "--dataset", folder, *SMALL, *flags, "--json")
    assert status == 0, err
    assert json.loads(out)["engine"] == "openvino"


@pytest.mark.parametrize("asked", [None, 64])
def test_too_little_memory_halves_the_batch(embed: Embed, monkeypatch: pytest.MonkeyPatch, asked: int | None) -> None:
    trunk = StagedModel.trunk
    notes: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_choice, "default_batch", lambda device: 64)
        patch.setattr(StagedModel, "trunk", lambda self, cut=None: _Limited(trunk(self, cut), 16))
        done = embed(noise(100), batch_size=asked).run(on_note=notes.append)
        patch.setattr(StagedModel, "trunk", lambda self, cut=None: _Limited(trunk(self, cut), 0))
        with pytest.raises(UserError, match="batches of 1: take a smaller"):
            embed(noise(50, name="other"), batch_size=2).run()
    halved = [note.split(" of ")[1] for note in notes if "too little memory" in note]
    assert halved == ["64: beginning again with 32", "32: beginning again with 16"]
    assert done.cache.provenance["batch"] == 16
    same = embed(noise(100), batch_size=16, cache_dir=done.cache.path.parent / "same").run().cache
    np.testing.assert_array_equal(same.splits["train"].load(), done.cache.splits["train"].load())
