"""Embedding: the right numbers in the right rows, once; interruptions, damage and other builders."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import BACKBONE
from forking import Forked
from making import Stop, files, interrupted, noise, stop_after

from featcache.cache.cache_file import Cache
from featcache.common.errors import CacheError, UserError
from featcache.common.locks import building, partial_path
from featcache.common.machine import choose_device
from featcache.embedding import embed_rows
from featcache.embedding import job as embedding_module
from featcache.embedding.job import Embedding
from featcache.models.backbones import Backbone, load_backbone
from featcache.sources.image_sets import load_dataset

Embed = Callable[..., Embedding]


def logical(cache: Cache) -> dict[str, bytes]:
    """All data of a cache, byte for byte."""
    parts = {}
    for name, split in cache.splits.items():
        for data_set, stored in split.stored.items():
            parts[f"{name}/{data_set}"] = stored.read().tobytes()
    return parts


def test_rows_are_the_trunks_output_for_their_images(folder: Path, embed: Embed, backbone: Backbone) -> None:
    cache = embed(folder, storage="float32").run().cache
    dataset = load_dataset(str(folder))
    for name, split in dataset.splits.items():
        pixels = split.images.read(range(len(split.ids))).pixels
        with torch.inference_mode():
            expected = backbone.staged.trunk()(backbone.preprocessing.normalise(backbone.preprocessing.fit(pixels)))
        np.testing.assert_allclose(cache.splits[name].load(), expected.numpy(), rtol=1e-4, atol=1e-5)
        assert cache.splits[name].ids == split.ids
        np.testing.assert_array_equal(cache.splits[name].content, split.images.digests())
    half = embed(folder).run().cache.splits["train"]
    np.testing.assert_array_equal(half.features, cache.splits["train"].load().astype(np.float16))


def test_the_second_run_runs_nothing(folder: Path, embed: Embed, monkeypatch: pytest.MonkeyPatch) -> None:
    first = embed(folder).run()
    assert (first.rows, first.rows_reused) == (52, 0)
    monkeypatch.setattr(embed_rows, "BatchReader", None)  # only the canary is embedded
    second = embed(folder).run()
    assert (second.rows, second.rows_reused, second.images_per_s) == (52, 52, 0)
    assert second.cache.path == first.cache.path


def test_workers_and_batches_in_memory_change_nothing(embed: Embed, folder: Path) -> None:
    alone = embed(folder).run().cache
    alone_data = logical(alone)
    alone.path.unlink()
    with_workers = embed(folder, workers=2).run().cache
    assert logical(with_workers) == alone_data


@pytest.mark.parametrize(
    "change",
    [
        {"storage": "float32"},
        {"precision": "bf16"},
        {"cut": 3},
        {"backbone": {"seed": 1}},
        {"backbone": {"mean": (0.4, 0.5, 0.5)}},
        {"backbone": {"resize": "squash"}},
    ],
    ids=str,
)
def test_another_encoder_is_another_cache(folder: Path, embed: Embed, change: dict) -> None:
    if "backbone" in change:
        change = {"backbone": load_backbone(BACKBONE, weights="none", image_size=32, **change["backbone"])}
    assert embed(folder, **change).plan.fingerprint != embed(folder).plan.fingerprint


def test_other_rows_are_another_cache(folder: Path, embed: Embed) -> None:
    before = embed(folder).path
    assert embed(folder).path == before
    data = (folder / "train/red/003.jpg").read_bytes()
    (folder / "train/red/003.jpg").write_bytes((folder / "train/red/004.jpg").read_bytes())
    assert embed(folder).path != before
    (folder / "train/red/003.jpg").write_bytes(data)
    assert embed(folder).path == before
    (folder / "train/red/003.jpg").rename(folder / "train/green/zzz.jpg")
    assert embed(folder).path != before


def test_an_interrupted_build_goes_on_to_the_same_bytes(embed_blocks: Embed, tmp_path: Path) -> None:
    dataset = noise(88)
    whole = embed_blocks(dataset, cache_dir=tmp_path / "whole").run().cache
    with pytest.raises(Stop):
        embed_blocks(dataset).run(on_progress=stop_after(66))
    assert not embed_blocks(dataset).path.exists()
    resumed = embed_blocks(dataset).run()
    assert resumed.rows_reused == 64
    assert logical(resumed.cache) == logical(whole)
    assert not list(resumed.cache.path.parent.glob(".*partial*"))


def test_a_file_in_the_making_of_another_batch_size_is_begun_anew_with_its_rows(embed_blocks: Embed) -> None:
    with pytest.raises(Stop):
        embed_blocks(noise(88)).run(on_progress=stop_after(66))
    notes: list[str] = []
    embedded = embed_blocks(noise(88), batch_size=16).run(on_note=notes.append)
    assert embedded.rows_reused == 64
    assert "is begun anew: its batch is 8, and now it is 16" in notes[1]
    (source,) = embedded.cache.provenance["reused"]
    assert source["batch"] == 8
    assert np.bincount(embedded.cache.splits["train"].origin).tolist() == [24, 64]
    assert not list(embedded.cache.path.parent.glob(".*.partial"))


def test_a_block_that_was_torn_is_done_again(embed_blocks: Embed) -> None:
    with pytest.raises(Stop):
        embed_blocks(noise(88)).run(on_progress=stop_after(66))
    partial = partial_path(embed_blocks(noise(88)).path)
    stored = Cache.open_unsealed(partial).splits["train"].stored["features"]
    with partial.open("r+b") as file:
        file.seek(stored.offset + 40 * stored.row_bytes)
        file.write(b"\xff\xff")
    assert embed_blocks(noise(88)).run().rows_reused == 32


def test_junk_under_the_partial_name_is_replaced(embed: Embed, folder: Path) -> None:
    path = embed(folder).path
    path.parent.mkdir()
    partial_path(path).write_bytes(b"junk")
    assert embed(folder).run().rows_reused == 0


def test_what_another_process_writes_to_is_left_alone(embed: Embed, folder: Path) -> None:
    partial = interrupted(embed(folder), 1)
    rows = embed(folder).plan.splits
    before = partial.read_bytes()
    with h5py.File(partial, "r+"), pytest.raises(CacheError, match=r"\.partial: open for writing in another process"):
        replace(embed(folder), rows=rows).run()
    assert (partial.read_bytes(), files(partial.parent) & {f"{partial.name}.before1"}) == (before, set())
    path = embed(folder).run().cache.path
    with h5py.File(path, "r+"):
        with pytest.raises(CacheError, match=r"\.h5: open for writing in another process"):
            replace(embed(folder), rows=rows).run()
        notes: list[str] = []
        embed(noise(2)).run(on_note=notes.append)
        assert [note for note in notes if note.startswith(f"no rows are taken from {path}: open for writing")]
    path.write_bytes(path.read_bytes()[:-1])
    assert embed(folder).run().rows_reused == 0


def test_damaged_images_are_marked_and_left_out(embed: Embed, folder: Path) -> None:
    (folder / "train/red/003.jpg").write_text("no picture")
    (folder / "test/green/002.jpg").write_bytes((folder / "test/green/003.jpg").read_bytes()[:300])
    embedded = embed(folder).run()
    assert embedded.rows_damaged == 2
    train = embedded.cache.splits["train"]
    assert train.errors == {"train/red/003.jpg": "not a JPEG, PNG, WebP, BMP or TIFF image"}
    assert train.ids[int(np.flatnonzero(train.status)[0])] == "train/red/003.jpg"
    assert len(train.usable()) == 39
    assert list(embedded.cache.splits["test"].errors) == ["test/green/002.jpg"]
    with pytest.raises(UserError, match="train/red/003.jpg: not a JPEG.*without --strict"):
        embed(folder, strict=True, storage="float32").run()


def test_an_image_that_changes_meanwhile_is_noticed(embed: Embed, folder: Path) -> None:
    work = replace(embed(folder), rows=embed(folder).plan.splits)
    (folder / "train/red/003.jpg").write_bytes((folder / "train/red/004.jpg").read_bytes())
    with pytest.raises(UserError, match="train/red/003.jpg changed while it was being embedded"):
        work.run()


def scaled(backbone: Backbone, factor: float) -> Backbone:
    """The same backbone with its last normalisation blown up."""
    again = load_backbone(BACKBONE, weights="none", image_size=32)
    again.staged.model.get_parameter("layer4.0.bn2.bias").data.fill_(factor)
    return replace(backbone, staged=again.staged)


def test_what_float16_cannot_hold_is_refused(embed: Embed, backbone: Backbone) -> None:
    with pytest.raises(UserError, match="beyond float16: take --storage float32"):
        embed(noise(20), backbone=scaled(backbone, 1e6)).run()
    assert embed(noise(20), backbone=scaled(backbone, 1e6), storage="float32").run().rows_damaged == 0


def test_features_that_are_not_finite_are_marked(embed: Embed, backbone: Backbone) -> None:
    embedded = embed(noise(20), backbone=scaled(backbone, float("nan"))).run()
    assert embedded.rows_damaged == 32
    assert set(embedded.cache.splits["train"].errors.values()) == {"features not finite"}


def test_maps_are_cached_at_an_inner_cut(embed: Embed, folder: Path, backbone: Backbone) -> None:
    cache = embed(folder, cut=backbone.staged.cut_after("layer2"), storage="float32").run().cache
    assert cache.encoder["cut"] == "layer2"
    assert not cache.holds_vectors
    maps = cache.splits["test"].load()
    assert maps.shape == (12, 48, 4, 4)
    vectors = embed(folder, storage="float32").run().cache.splits["test"].load()
    rest = torch.nn.Sequential(backbone.staged.tail(3))
    with torch.inference_mode():
        logits = rest(torch.from_numpy(maps).to(memory_format=torch.channels_last))
        expected = backbone.staged.head(torch.from_numpy(vectors))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_a_full_disk_is_told_before_any_image_is_read(
    embed: Embed, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _path: type("Usage", (), {"free": 1000}))
    monkeypatch.setattr(embed_rows, "BatchReader", None)
    with pytest.raises(UserError, match=r"52 rows need [\d,]+ bytes, and 1,000 are free"):
        embed(folder).run()
    assert not list((folder.parent / "features").glob("*.h5"))


def hold(path: Path) -> None:
    """Keep a build's lock until another is known to wait for it."""
    end = time.monotonic() + 100
    with building(path):
        print("held")
        while not Path("waited for").exists() and time.monotonic() < end:
            time.sleep(0.02)


def test_another_builder_is_waited_for(embed: Embed, folder: Path) -> None:
    work = embed(folder)
    other = Forked(hold, work.path, folder=folder.parent)
    other.stdout_line("held")
    waits: list[tuple[str, bool]] = []

    def waiting(holder: str) -> None:
        waits.append((holder, other.poll() is None))
        (folder.parent / "waited for").touch()

    work.run(on_wait=waiting)
    assert waits == [(str(other.pid), True)]
    assert other.wait(timeout=100) == 0


def test_devices_that_are_not_there_are_refused() -> None:
    assert choose_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--device cuda: torch finds none here"):
            choose_device("cuda")
        assert choose_device("auto").type in ("cpu", "mps")
    with pytest.raises(UserError, match="--device tpu: expected auto, cuda, mps or cpu"):
        choose_device("tpu")


def test_on_a_gpu_the_features_are_the_same(embed: Embed, folder: Path, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    on_cpu = embed(folder, storage="float32", cache_dir=tmp_path / "cpu").run().cache.splits["train"].load()
    work = replace(embed(folder, storage="float32"), device=torch.device("cuda"))
    np.testing.assert_allclose(work.run().cache.splits["train"].load(), on_cpu, rtol=1e-4, atol=1e-4)


def test_what_is_published_is_not_touched_again(embed: Embed, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_folder: Path) -> None:
        raise KeyboardInterrupt

    work = embed(folder)
    assert work.path.parent.exists() is False
    monkeypatch.setattr(
        "featcache.build.builder.sync_folder", lambda path: interrupted(path) if list(path.glob("*.h5")) else None
    )
    with pytest.raises(KeyboardInterrupt):
        work.run()
    assert Cache.open(work.path).fingerprint == work.plan.fingerprint


def test_fp32_is_not_tf32(embed: Embed, folder: Path, backbone: Backbone) -> None:
    seen = []
    convolution = backbone.staged.model.get_submodule("layer1.0.conv1")
    hook = convolution.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    before = torch.backends.cudnn.allow_tf32
    embed(folder).run()
    hook.remove()
    assert seen
    assert not any(seen)
    assert torch.backends.cudnn.allow_tf32 == before


def test_a_build_that_goes_on_elsewhere_says_so(embed_blocks: Embed, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Stop):
        embed_blocks(noise(88)).run(on_progress=stop_after(66))
    monkeypatch.setattr(embedding_module, "versions", lambda: {"torch": "another"})
    provenance = embed_blocks(noise(88)).run().cache.provenance
    assert [session["versions"] for session in provenance["resumed_on"]] == [{"torch": "another"}]
    assert provenance["versions"] != {"torch": "another"}
