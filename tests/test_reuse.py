"""Rows that other caches of the same encoder hold are copied, by content; all others are embedded; none is stale."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw
from making import assert_equal_to_a_fresh_build, numbered, with_other_weights

from featcache.common.errors import CacheError
from featcache.common.locks import partial_path
from featcache.embedding import job as embedding_module
from featcache.embedding.forward_passes import TrunkPasses
from featcache.embedding.job import Embedding
from featcache.models.backbones import Backbone
from featcache.sources.image_sets import load_dataset
from featcache.tables.subset import Subset

Embed = Callable[..., Embedding]


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each forward pass was for, the canary's four left out."""
    counted: list[int] = []
    features = TrunkPasses.features

    def counting(self: TrunkPasses, images: torch.Tensor) -> np.ndarray:
        counted.append(len(images))
        return features(self, images)

    canary = Embedding.canary

    def uncounted(self: Embedding) -> object:
        before = len(counted)
        made = canary(self)
        del counted[before:]
        return made

    monkeypatch.setattr(TrunkPasses, "features", counting)
    monkeypatch.setattr(Embedding, "canary", uncounted)
    return counted


def test_ten_images_more_are_ten_forward_passes(embed_blocks: Embed, forwards: list[int], tmp_path: Path) -> None:
    first = embed_blocks(numbered(np.arange(1_000)), batch_size=64).run()
    assert sum(forwards) == 1_012
    forwards.clear()
    work = embed_blocks(numbered(np.arange(1_010)), batch_size=64)
    second = work.run()
    assert forwards == [10]
    assert (second.rows, second.rows_reused) == (1_022, 1_012)
    assert second.cache.path != first.cache.path
    assert first.cache.path.exists()
    origin = second.cache.splits["train"].origin
    assert (origin[:1_000] == 1).all()
    assert not origin[1_000:].any()
    assert second.cache.provenance["reused"][0]["fingerprint"] == first.cache.fingerprint
    np.testing.assert_array_equal(
        second.cache.splits["train"].read(np.arange(1_000)), first.cache.splits["train"].read()
    )


def test_changed_removed_and_added_files_are_noticed(
    embed: Embed, folder: Path, forwards: list[int], tmp_path: Path
) -> None:
    embed(folder).run()
    forwards.clear()
    draw(folder / "train/red/003.jpg", hue=1, seed=99)
    (folder / "train/red/004.jpg").unlink()
    draw(folder / "train/green/zzz.jpg", hue=2, seed=98)
    (folder / "test/green/000.jpg").rename(folder / "test/red/moved.jpg")
    embedded = embed(folder).run()
    assert sum(forwards) == 2
    assert embedded.rows_reused == embedded.rows - 2
    assert_equal_to_a_fresh_build(embedded.cache, embed(folder), tmp_path / "fresh")


def test_a_subset_serves_the_whole_and_the_whole_a_subset(embed: Embed, folder: Path, forwards: list[int]) -> None:
    few = load_dataset(str(folder), subset=Subset(per_class=5))
    embed(few).run()
    forwards.clear()
    embedded = embed(folder).run()
    assert embedded.rows_reused == 10 + 12
    assert sum(forwards) == 30
    forwards.clear()
    other = load_dataset(str(folder), subset=Subset(per_class=7, seed=3))
    assert embed(other).run().rows_reused == 14 + 12
    assert forwards == []


def test_another_encoder_gives_no_rows(embed: Embed, folder: Path, forwards: list[int]) -> None:
    embed(folder).run()
    embedded = embed(folder, storage="float32").run()
    assert embedded.rows_reused == 0
    assert embedded.cache.provenance["reused"] == []


def test_damaged_sources_are_not_copied(embed_blocks: Embed, forwards: list[int], tmp_path: Path) -> None:
    first = embed_blocks(numbered(np.arange(80))).run().cache
    stored = first.splits["train"].stored["features"]
    with first.path.open("r+b") as file:
        file.seek(stored.offset + 40 * stored.row_bytes)
        file.write(b"\xff\xff")
    forwards.clear()
    work = embed_blocks(numbered(np.arange(90)))
    embedded = work.run()
    assert 0 < embedded.rows_reused < 92
    assert_equal_to_a_fresh_build(embedded.cache, work, tmp_path / "fresh")


def test_one_bad_block_of_a_source_costs_its_rows_alone(embed_blocks: Embed) -> None:
    first = embed_blocks(numbered(np.arange(120))).run().cache
    stored = first.splits["train"].stored
    with first.path.open("r+b") as file:
        for part, row in (("content", 10), ("features", 40)):
            file.seek(stored[part].offset + row * stored[part].row_bytes)
            file.write(b"\xff" * 2)
    assert embed_blocks(numbered(np.arange(130))).run().rows_reused == 132 - 64


def test_a_dead_builder_of_another_host_leaves_its_rows(
    embed_blocks: Embed, forwards: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = embed_blocks(numbered(np.arange(90)))

    def stop(done: int, total: int) -> None:
        if done >= 75:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work.run(on_progress=stop)
    own = partial_path(work.path)
    other = own.with_name(own.name.replace(".partial", "").rpartition(".")[0] + ".0badc0de.partial")
    own.rename(other)
    forwards.clear()
    embedded = work.run()
    assert embedded.rows_reused == 64
    assert sum(forwards) == 38
    assert other.exists()  # its builder may be alive
    assert embedded.cache.provenance["reused"][0]["file"] == other.name


def test_two_hosts_build_privately_and_either_result_stands(
    embed_blocks: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = embed_blocks(numbered(np.arange(40)))
    paths = []

    def meanwhile(done: int, total: int) -> None:
        if not paths:
            paths.append(None)
            with monkeypatch.context() as there:
                there.setattr("featcache.common.locks.host", lambda: "0badc0de")
                paths.append(embed_blocks(numbered(np.arange(40))).run().cache.path)

    cache = work.run(on_progress=meanwhile).cache
    assert paths[1] == cache.path
    assert not cache.damages()
    assert not list(cache.path.parent.glob(".*.partial"))


def test_a_stack_that_has_drifted_is_told_and_its_rows_are_not_reused(
    embed: Embed, folder: Path, backbone: Backbone, forwards: list[int]
) -> None:
    made = embed(folder).run().cache
    drifted = with_other_weights(backbone)
    with pytest.raises(
        CacheError, match=r"today's stack makes other features than it holds: features of \w+\.\w+ diff"
    ):
        embed(folder, backbone=drifted).run()
    draw(folder / "train/red/003.jpg", hue=1, seed=99)
    notes: list[str] = []
    embedded = embed(folder, backbone=drifted).run(on_note=notes.append)
    assert embedded.rows_reused == 0
    assert f"51 rows of {made.path} are not reused: features of" in notes[1]
    assert "the decoded and resized pictures agree" in notes[1]


def test_another_decoder_is_told(embed: Embed, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embed(folder).run()
    decode = embedding_module.decode
    monkeypatch.setattr(embedding_module, "decode", lambda data: 255 - decode(data))
    with pytest.raises(CacheError, match=r"resized pictures differ \(colour_420.jpg, grey_lying.jpg"):
        embed(folder).run()


def test_a_file_in_the_making_of_a_drifted_stack_is_begun_anew(embed_blocks: Embed, backbone: Backbone) -> None:
    def stop(done: int, total: int) -> None:
        if done >= 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_blocks(numbered(np.arange(80))).run(on_progress=stop)
    notes: list[str] = []
    drifted = embed_blocks(numbered(np.arange(80)), backbone=with_other_weights(backbone))
    embedded = drifted.run(on_note=notes.append)
    assert embedded.rows_reused == 0
    assert "is begun anew: features of" in notes[2]


def test_a_copy_of_a_cache_serves_as_the_cache(embed: Embed, folder: Path, tmp_path: Path) -> None:
    cache = embed(folder).run().cache
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(cache.path, tmp_path / "elsewhere")
    assert embed(folder, cache_dir=tmp_path / "elsewhere").run().rows_reused == 52
