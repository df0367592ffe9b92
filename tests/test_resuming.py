"""Builds that are interrupted while rows of other files go into them: nothing lost, nothing wrong, the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from making import assert_equal_to_a_fresh_build, numbered, stopped, with_other_weights

from featcache.cache.cache_file import Cache
from featcache.common.errors import UserError
from featcache.common.locks import partial_path
from featcache.embedding.job import Embedding
from featcache.models.backbones import Backbone
from featcache.sources import decoding

Embed = Callable[..., Embedding]


def test_a_source_that_vanishes_in_the_middle_is_made_up_for(embed_blocks: Embed, tmp_path: Path) -> None:
    first = embed_blocks(numbered(np.arange(80))).run().cache
    work = embed_blocks(numbered(np.arange(0, 170, 2)))  # blocks of old and new rows

    def vanish(done: int, total: int) -> None:
        if done > 50 and first.path.exists():
            first.path.unlink()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work.run(on_progress=vanish)
    embedded = work.run()
    assert_equal_to_a_fresh_build(embedded.cache, work, tmp_path / "fresh")
    assert 0 < np.count_nonzero(embedded.cache.splits["train"].origin) < 40


def test_a_build_with_reused_rows_goes_on_to_the_same_bytes(embed_blocks: Embed, tmp_path: Path) -> None:
    old, new = numbered(np.arange(0, 120, 3)), numbered(np.arange(120))
    for name in ("whole", "torn"):
        embed_blocks(old, cache_dir=tmp_path / name).run()
    whole = embed_blocks(new, cache_dir=tmp_path / "whole").run().cache
    for limit in (50, 75, 100):

        def stop(done: int, total: int, limit: int = limit) -> None:
            if done >= limit:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            embed_blocks(new, cache_dir=tmp_path / "torn").run(on_progress=stop)
    torn = embed_blocks(new, cache_dir=tmp_path / "torn").run().cache
    for name, split in whole.splits.items():
        for part, stored in split.stored.items():
            np.testing.assert_array_equal(torn.splits[name].stored[part].read(), stored.read(), err_msg=part)


def test_a_source_that_another_stack_made_anew_gives_no_rows_on_resuming(
    embed_blocks: Embed, backbone: Backbone, tmp_path: Path
) -> None:
    old, new = embed_blocks(numbered(np.arange(0, 120, 3))), embed_blocks(numbered(np.arange(120)))
    first = old.run().cache
    stopped(new, 75)
    first.path.unlink()
    for partial in first.path.parent.glob(".*.partial"):
        partial.rename(tmp_path / partial.name)  # out of the way: it would give the rows
    drifted = embed_blocks(numbered(np.arange(0, 120, 3)), backbone=with_other_weights(backbone))
    made_anew = drifted.run().cache
    assert made_anew.fingerprint == first.fingerprint
    for partial in tmp_path.glob(".*.partial"):
        partial.rename(first.path.parent / partial.name)
    assert_equal_to_a_fresh_build(new.run().cache, new, tmp_path / "fresh")


def test_other_batch_sizes_and_back_lose_nothing(embed_blocks: Embed) -> None:
    def work(batch_size: int) -> Embedding:
        return embed_blocks(numbered(np.arange(140)), batch_size=batch_size)

    stopped(work(8), 75)
    stopped(work(4), 0)
    assert work(8).run().rows_reused == 64
    assert not list(work(8).path.parent.glob(".*.partial"))


def test_an_interrupted_build_that_copies_from_its_predecessor_keeps_all(embed_blocks: Embed, tmp_path: Path) -> None:
    stopped(embed_blocks(numbered(np.arange(190)), batch_size=8), 130)
    work = embed_blocks(numbered(np.arange(190)), batch_size=4)
    stopped(work, 40)
    embedded = work.run()
    assert embedded.rows_reused == 128
    assert_equal_to_a_fresh_build(embedded.cache, work, tmp_path / "fresh")


def test_a_build_that_cannot_be_begun_anew_leaves_what_was_there(
    embed_blocks: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(embed_blocks(numbered(np.arange(90))), 75)
    with monkeypatch.context() as full:
        full.setattr("shutil.disk_usage", lambda _path: type("Usage", (), {"free": 1000}))
        with pytest.raises(UserError, match="1,000 are free"):
            embed_blocks(numbered(np.arange(90)), batch_size=4).run()
    assert embed_blocks(numbered(np.arange(90))).run().rows_reused == 64


def test_a_row_that_failed_once_and_not_again_is_not_told_of(
    embed: Embed, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, calls = decoding.decode, []

    def short_of_memory(data: bytes) -> np.ndarray:
        calls.append(data)
        if len(calls) <= 3:
            raise decoding.DamagedImageError("damaged: out of memory")
        if len(calls) == 5:
            raise KeyboardInterrupt
        return decode(data)

    monkeypatch.setattr(decoding, "decode", short_of_memory)
    work = embed(folder, batch_size=3)
    with pytest.raises(KeyboardInterrupt):
        work.run()
    assert Cache.open_unsealed(partial_path(work.path)).splits["train"].errors
    cache = work.run().cache
    assert cache.splits["train"].errors == {}
    assert not cache.splits["train"].status.any()
