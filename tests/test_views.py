"""Augmented views beside the plain one, and maps: seeded, the same however they are batched, resumed or copied."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import QUICK

from featcache.cache.cache_file import Cache
from featcache.common.errors import UserError
from featcache.embedding.job import Embedding
from featcache.models.backbones import Backbone
from featcache.sources.augmented_views import Augmentation
from featcache.sources.image_sets import load_dataset
from featcache.tables.subset import Subset

Embed = Callable[..., Embedding]
Run = Callable[..., tuple[int, str, str]]
THREE = Augmentation(views=3, seed=5)


def test_the_plain_view_is_the_first_and_the_others_are_of_the_same_image(
    embed: Embed, folder: Path, backbone: Backbone
) -> None:
    plain = embed(folder, storage="float32").run().cache.splits["train"].load()
    cache = embed(folder, storage="float32", augmentation=THREE).run().cache
    split = cache.splits["train"]
    assert cache.encoder["views"] == THREE.to_json()
    assert cache.holds_vectors
    views = split.load()
    assert views.shape == (40, 4, 96)
    np.testing.assert_allclose(views[:, 0], plain, rtol=1e-4, atol=1e-5)
    images = load_dataset(str(folder)).splits["train"].images
    read = images.read([7])
    drawn = THREE.draw(read.pixels, read.digests, backbone.preprocessing)[0]
    with torch.inference_mode():
        expected = backbone.staged.trunk()(backbone.preprocessing.normalise(drawn))
    np.testing.assert_allclose(views[7, 1:], expected.numpy(), rtol=1e-4, atol=1e-5)
    assert not np.allclose(views[:, 1], views[:, 2])


def test_the_batch_decides_nothing(embed: Embed, folder: Path) -> None:
    made = {}
    for batch_size in (1, 8, 30):
        work = embed(folder, storage="float32", augmentation=THREE, batch_size=batch_size)
        cache = work.run().cache
        made[batch_size] = cache.splits["train"].load()
        cache.path.unlink()
    np.testing.assert_allclose(made[1], made[8], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(made[30], made[8], rtol=1e-4, atol=1e-5)


def test_views_and_maps_are_reused_by_content(embed: Embed, folder: Path, backbone: Backbone) -> None:
    few = load_dataset(str(folder), subset=Subset(per_class=5))
    for settings in ({"augmentation": THREE}, {"cut": backbone.staged.cut_after("layer2")}):
        embed(few, **settings).run()
        assert embed(folder, **settings).run().rows_reused == 22


def test_another_augmentation_is_another_cache(embed: Embed, folder: Path) -> None:
    settings = [None, THREE, Augmentation(views=3, seed=6), Augmentation(views=2, seed=5)]
    settings += [Augmentation(views=3, seed=5, flip=0.2), Augmentation(views=3, seed=5, crop_scale=(0.2, 1))]
    prints = {embed(folder, augmentation=augmentation).plan.fingerprint for augmentation in settings}
    assert len(prints) == len(settings)


def test_random_rows_of_maps_in_any_order(embed: Embed, folder: Path, backbone: Backbone) -> None:
    split = embed(folder, cut=backbone.staged.cut_after("layer1")).run().cache.splits["train"]
    assert split.row_shape == (32, 8, 8)
    rows = np.array([39, 3, 3, 0, 17])
    np.testing.assert_array_equal(split.read(rows), split.features[rows])
    np.testing.assert_array_equal(split.read(rows, check=False), split.features[rows])
    with pytest.raises(IndexError, match="train has 40 rows; asked for rows -1 to 3"):
        split.read(np.array([3, -1]))


def test_a_big_row_has_a_checksum_of_its_own(embed: Embed, backbone: Backbone) -> None:
    work = embed(load_dataset("digits", subset=Subset(per_class=1, limit={"test": 3})), cut=1, storage="float32")
    assert work.plan.block_rows == 256 * 1024 // (32 * 8 * 8 * 4)
    big = embed(
        load_dataset("digits", subset=Subset(per_class=1)),
        cut=1,
        storage="float32",
        augmentation=Augmentation(views=7, seed=0),
    )
    assert big.plan.block_rows == 1


def test_the_bytes_are_told_and_too_many_are_refused_before_anything_is_read(
    embed: Embed, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = embed(folder, max_gb=9e-6)
    assert work.feature_bytes == 52 * 96 * 2
    monkeypatch.setattr("featcache.sources.image_sets.FileImages.digests", None)
    with pytest.raises(UserError, match="52 rows of 96 take 9,984 bytes, more than --max-gb 9e-06: raise it"):
        work.run()
    status, out, err = run("embed", *QUICK, "--cut", "stem", "--views", 40, "--max-gb", 0.01)
    assert status == 1
    assert "the features of 419 images take 70,365,184 bytes" in out
    assert "419 rows of 41 x 32 x 8 x 8 take 70,365,184 bytes, more than --max-gb 0.01" in err


def test_heads_take_the_plain_view_where_asked_and_say_so(run: Run, tmp_path: Path) -> None:
    precise = [*QUICK, "--storage", "float32"]  # no two batches agree in the last bits, which float16 may show
    run("embed", *precise, "--views", 2)
    status, out, _ = run("fit-head", "--clf", "centroid", "--views", "plain", "--name", "views")
    assert status == 0
    assert "2 augmented views of each image are in the cache; heads take the plain one" in out
    _, out, _ = run("fit-head", "--clf", "centroid", "--name", "all")
    assert "heads train on all of them, each counting 1 / 3, and average at test time" in out
    run("embed", *precise)
    run("fit-head", "--clf", "centroid", "--name", "plain")
    scores = [json.loads((tmp_path / f"runs/{name}/run.json").read_text())["metrics"] for name in ("views", "plain")]
    assert scores[0] == scores[1]
    views, plain = (np.load(tmp_path / f"runs/{name}/predictions.npz") for name in ("views", "plain"))
    np.testing.assert_allclose(views["test_scores"], plain["test_scores"], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("flags", [["--views", -1], ["--flip", 0.5], ["--views", 2, "--crop-scale", "0.5,2"]])
def test_views_that_make_no_sense_are_refused(run: Run, flags: list[object]) -> None:
    status, _, err = run("embed", *QUICK, *flags)
    assert status == 2
    assert err.count("\n") == 1


def test_a_cache_of_views_is_read_by_rows(embed: Embed, folder: Path) -> None:
    path = embed(folder, augmentation=THREE).run().cache.path
    split = Cache.open(path).splits["test"]
    assert split.read(np.array([2])).shape == (1, 4, 96)
