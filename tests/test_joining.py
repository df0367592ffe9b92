"""Several caches as one: rows matched by id and content, or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import BACKBONE, draw
from row_checks import VIEWS, Embed, MakeFolder, assert_same, by_id

from featcache.cache.cache_file import Cache
from featcache.common.errors import UsageError, UserError
from featcache.models.backbones import Backbone, load_backbone
from featcache.sources.augmented_views import Augmentation
from featcache.sources.image_sets import load_dataset
from featcache.tables.subset import Subset
from heads.joined_features import JoinedFeatures
from heads.rows import load_rows


@pytest.fixture
def never_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heads.rows.KEPT_BYTES", 0)


@pytest.fixture(scope="module")
def larger() -> Backbone:
    """The same backbone on larger pictures: another preprocessing, and other features."""
    return load_backbone(BACKBONE, weights="none", image_size=40)


def test_caches_of_the_same_images_are_put_side_by_side(
    cache: Cache, embed: Embed, folder: Path, larger: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps, other = embed(folder, cut=4).run().cache, embed(folder, backbone=larger).run().cache
    alone = load_rows(cache)
    rows = load_rows([cache, maps, other], pool_maps=True)
    assert rows.fingerprint == alone.fingerprint
    assert rows.train.ids == alone.train.ids
    assert rows.train.features.shape == (36, 96 + 192 + 96)
    first, second, third = by_id(cache), by_id(maps), by_id(other)
    for part in (rows.train, rows.val, rows.test, rows.dev):
        expected = [np.concatenate([first[i], second[i].mean(axis=(-2, -1)), third[i]]) for i in part.ids]
        np.testing.assert_array_equal(part.features.load(), np.stack(expected))
    assert rows.notes[0] == (
        "features of 3 caches side by side, joined by id and content: timm/test_resnet after layer4 (96), "
        "timm/test_resnet after layer3 (192), timm/test_resnet after layer4 (96)"
    )
    monkeypatch.setattr("heads.rows.KEPT_BYTES", 0)
    streamed = load_rows([cache, maps, other], pool_maps=True)
    assert isinstance(streamed.dev.features, JoinedFeatures)
    assert_same(streamed, rows, notes=False)
    assert_same(streamed.recarved(2), load_rows([cache, maps, other], pool_maps=True, seed=2))
    with pytest.raises(UserError, match="holds maps"):
        load_rows([cache, maps])
    with pytest.raises(UsageError, match="joined already; name each cache once"):
        load_rows([cache, other, Cache.open(cache.path)])


def test_caches_in_another_order_are_matched_by_id(
    cache: Cache, embed: Embed, folder: Path, larger: Backbone, never_kept: None
) -> None:
    whole = load_dataset(str(folder))
    splits = {}
    for name, split in whole.splits.items():
        splits[name] = split.take(np.random.default_rng(1).permutation(len(split.ids)))
    shuffled = replace(whole, splits=splits)
    other = embed(shuffled, backbone=larger).run().cache
    assert other.splits["train"].ids != cache.splits["train"].ids
    rows = load_rows((cache, other))
    assert rows.train.ids == load_rows(cache).train.ids
    first, second = by_id(cache), by_id(other)
    for part in (rows.dev, rows.test):
        np.testing.assert_array_equal(
            part.features.load(), np.stack([np.concatenate([first[i], second[i]]) for i in part.ids])
        )
    assert load_rows([other, cache]).test.ids == other.splits["test"].ids


def test_rows_that_not_all_caches_have_are_left_out_and_counted(
    cache: Cache, embed: Embed, folder: Path, larger: Backbone
) -> None:
    (folder / "train/red/003.jpg").write_bytes(b"no picture")
    few = load_dataset(str(folder), subset=Subset(per_class=15, take="first"))
    other = embed(few, backbone=larger).run().cache
    for caches in ([cache, other], [other, cache]):
        rows = load_rows(caches)
        assert len(rows.dev) == 29
        assert "train/red/003.jpg" not in rows.dev.ids
        assert "10 rows are not in all caches and are left out" in rows.notes
        assert "1 rows have no features or no label in one of the caches and are left out" in rows.notes
    assert load_rows(caches, subset=Subset(per_class=14)).chosen["subset"]["per_class"] == 14
    with pytest.raises(UserError, match="--per-class 15: class 'red' has 14 training images"):
        load_rows(caches, subset=Subset(per_class=15))


def test_caches_of_other_images_are_refused(
    cache: Cache, embed: Embed, folder: Path, make_folder: MakeFolder, larger: Backbone
) -> None:
    draw(folder / "train/red/003.jpg", hue=2, seed=77)
    draw(folder / "train/red/005.jpg", hue=2, seed=78)
    changed = embed(folder, backbone=larger).run().cache
    with pytest.raises(
        UserError, match=r"train image 'train/red/003.jpg' has other bytes than in .* \(2 images have\)"
    ):
        load_rows([cache, changed])
    counts = {"train": {"red": 3, "blue": 3}, "test": {"red": 1, "blue": 1}}
    with pytest.raises(UserError, match="has other classes than .* .'blue' where the other has 'green'.; embed"):
        load_rows([cache, embed(make_folder(counts, "blue"), backbone=larger).run().cache])
    three = {"train": {"green": 3, "red": 3, "x": 3}, "test": {"green": 1, "red": 1, "x": 1}}
    with pytest.raises(UserError, match="has other classes than .* .3 of them, not 2."):
        load_rows([cache, embed(make_folder(three, "three"), backbone=larger).run().cache])
    own = {"red": 3, "green": 3}
    with pytest.raises(UserError, match="has the splits train, val, test, and .* has train, test; embed the same"):
        load_rows([cache, embed(make_folder({"train": own, "val": own, "test": own}, "own")).run().cache])


def test_caches_without_a_common_image_or_with_another_label_are_refused(
    cache: Cache, embed: Embed, folder: Path, larger: Backbone
) -> None:
    whole = load_dataset(str(folder))

    def changed(**settings: object) -> Cache:
        splits = {
            name: replace(split, **{k: f(split) for k, f in settings.items()}) for name, split in whole.splits.items()
        }
        return embed(replace(whole, splits=splits), backbone=larger).run().cache

    renamed = changed(ids=lambda split: tuple(f"{name}.old" for name in split.ids))
    with pytest.raises(UserError, match="no train image is in all of them; embed the same data set for each"):
        load_rows([cache, renamed])
    relabelled = changed(labels=lambda split: 1 - split.labels)
    with pytest.raises(UserError, match="train image 'train/green/000.jpg' is labelled 'red', in .* 'green'; embed"):
        load_rows([cache, relabelled])


def test_views_are_joined_where_they_are_the_same(
    embed: Embed, folder: Path, larger: Backbone, never_kept: None
) -> None:
    caches = [
        embed(folder, augmentation=VIEWS).run().cache,
        embed(folder, augmentation=VIEWS, backbone=larger).run().cache,
        embed(folder, augmentation=Augmentation(views=2, seed=6), backbone=larger).run().cache,
        embed(folder, backbone=larger).run().cache,
    ]
    rows = load_rows(caches[:2])
    assert rows.test.features.n_views == 3
    first, second = (cache.splits["test"].load() for cache in caches[:2])
    expected = np.concatenate([first, second], axis=2)
    np.testing.assert_array_equal(rows.test.features.expanded().load(), expected.reshape(-1, 2 * 96))
    np.testing.assert_array_equal(rows.test.features.view(2).load(), expected[:, 2])
    for other in caches[2:]:
        plain = load_rows([caches[0], other])
        assert plain.test.features.n_views == 1
        told = "2 augmented views of each image are in the cache; heads take the plain one, since the caches"
        assert any(note.startswith(told) for note in plain.notes)
        whole = other.splits["test"].load()
        expected = np.concatenate([first[:, 0], whole[:, 0] if whole.ndim == 3 else whole], axis=1)
        np.testing.assert_array_equal(plain.test.features.load(), expected)
