"""Rows for heads: chosen and split once, joined over caches by id and content, the same kept or streamed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import draw
from making import flip

from featcache import layout
from featcache.augmentation import Augmentation
from featcache.backbones import Backbone, load_backbone
from featcache.cache import Cache
from featcache.datasets import ArrayImages, ImageDataset, Split, load_dataset
from featcache.embedding import Embedding
from featcache.errors import CacheError, UsageError, UserError
from featcache.subset import Subset
from heads.cached_features import CachedFeatures
from heads.features import ArrayFeatures
from heads.joined_features import JoinedFeatures, StackedFeatures
from heads.rows import KEPT_BYTES, Rows, carve_validation, load_rows, rows_fingerprint

Embed = Callable[..., Embedding]
MakeFolder = Callable[..., Path]
VIEWS = Augmentation(views=2, seed=5)


@pytest.fixture
def never_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heads.rows.KEPT_BYTES", 0)


@pytest.fixture(scope="module")
def larger() -> Backbone:
    """The same backbone on larger pictures: another preprocessing, and other features."""
    return load_backbone("resnet18", weights="none", image_size=40)


def assert_same(a: Rows, b: Rows, *, notes: bool = True) -> None:
    assert (a.class_names, a.fingerprint, a.chosen) == (b.class_names, b.fingerprint, b.chosen)
    assert not notes or a.notes == b.notes
    for one, other in ((a.train, b.train), (a.val, b.val), (a.test, b.test), (a.dev, b.dev)):
        assert one.ids == other.ids
        np.testing.assert_array_equal(one.labels, other.labels)
        assert one.features.n_views == other.features.n_views
        assert one.features.expanded().load().tobytes() == other.features.expanded().load().tobytes()


def by_id(cache: Cache) -> dict[str, np.ndarray]:
    return {name: row for split in cache.splits.values() for name, row in zip(split.ids, split.load(), strict=True)}


def test_rows_are_split_once_and_wholly(cache: Cache) -> None:
    rows = load_rows(cache, val_fraction=0.2)
    assert sorted(rows.dev.ids) == sorted(cache.splits["train"].ids)
    assert rows.dev.ids == rows.train.ids + rows.val.ids
    assert (len(rows.train), len(rows.val), len(rows.dev), len(rows.test)) == (32, 8, 40, 12)
    assert rows.test.ids == cache.splits["test"].ids
    features = by_id(cache)
    for part in (rows.train, rows.val, rows.test, rows.dev):
        np.testing.assert_array_equal(part.features.load(), np.stack([features[name] for name in part.ids]))
        assert [name.split("/")[1] == "red" for name in part.ids] == (part.labels == 1).tolist()
    assert not rows.own_validation
    assert "validation is carved from train: 8 of 40 rows (seed 0)" in rows.notes
    some = rows.dev.take(np.array([39, 0]))
    assert some.ids == (rows.val.ids[-1], rows.train.ids[0])
    np.testing.assert_array_equal(some.features.load(), rows.dev.features.load()[[39, 0]])


def test_the_fingerprint_is_that_of_all_ids_and_labels(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = load_rows(cache)
    told = [[list(part.ids), part.labels.tolist()] for part in (rows.train, rows.val, rows.test)]
    assert rows.fingerprint == layout.fingerprint(told)
    monkeypatch.setattr("heads.rows._DIGESTED_AT_ONCE", 7)
    assert rows_fingerprint(rows.train, rows.val, rows.test) == rows.fingerprint
    odd = replace(rows.test, ids=tuple(f'ü"\\\n{i}' for i in range(12)))
    assert rows_fingerprint(odd) == layout.fingerprint([[list(odd.ids), odd.labels.tolist()]])
    assert rows_fingerprint(rows.test.take(np.array([], np.int64))) == layout.fingerprint([[[], []]])


@pytest.mark.parametrize("settings", [{}, {"augmentation": VIEWS}, {"cut": 2}, {"cut": 2, "augmentation": VIEWS}])
def test_streamed_rows_are_those_kept(
    embed: Embed, folder: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:
    cache = embed(folder, **settings).run().cache
    kept = load_rows(cache, pool_maps=True)
    assert isinstance(kept.train.features, ArrayFeatures)
    monkeypatch.setattr("heads.rows.KEPT_BYTES", sum(p.features.n_bytes for p in (kept.dev, kept.test)) - 1)
    streamed = load_rows(cache, pool_maps=True)
    assert isinstance(streamed.train.features, CachedFeatures)
    assert isinstance(streamed.dev.features, CachedFeatures)
    assert_same(kept, streamed, notes=False)
    assert streamed.notes[:-2] == kept.notes[:-1]
    assert "GiB in memory, more than " in streamed.notes[-2]
    assert kept.train.features.n_bytes < KEPT_BYTES


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("subset", [None, Subset(per_class=12, seed=3), Subset(classes=("red", "green"))])
def test_recarved_rows_are_those_loaded_with_the_seed(
    embed: Embed, folder: Path, monkeypatch: pytest.MonkeyPatch, keep: bool, subset: Subset | None
) -> None:
    if not keep:
        monkeypatch.setattr("heads.rows.KEPT_BYTES", 0)
    cache = embed(folder, augmentation=VIEWS).run().cache
    rows = load_rows(cache, subset=subset, val_fraction=0.3)
    for seed in (4, 0):
        again = rows.recarved(seed)
        assert_same(again, load_rows(cache, subset=subset, val_fraction=0.3, seed=seed))
        assert_same(again.recarved(0), rows)
    assert rows.recarved(4).fingerprint != rows.fingerprint
    assert rows.recarved(4).chosen["seed"] == 4


def test_recarving_reads_nothing(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = load_rows(cache)
    cache.path.unlink()
    assert len(rows.recarved(7).dev.features.load()) == 40


@pytest.mark.parametrize("keep", [True, False])
def test_a_set_with_its_own_validation_keeps_it(
    make_folder: MakeFolder, embed: Embed, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    if not keep:
        monkeypatch.setattr("heads.rows.KEPT_BYTES", 0)
    counts = {"red": 5, "green": 4}
    cache = embed(make_folder({"train": counts, "val": counts, "test": counts})).run().cache
    rows = load_rows(cache)
    assert rows.own_validation
    assert all(name.startswith("val/") for name in rows.val.ids)
    assert "validation is the set's own split: 9 rows" in rows.notes
    assert_same(rows.recarved(3), load_rows(cache, seed=3))
    assert rows.recarved(3).fingerprint == rows.fingerprint
    assert isinstance(rows.dev.features, StackedFeatures)
    features = by_id(cache)
    mixed = rows.dev.take(np.array([17, 0, 9, 8, 1]))
    np.testing.assert_array_equal(mixed.features.load(), np.stack([features[name] for name in mixed.ids]))


def test_classes_without_rows_are_told(embed: Embed) -> None:
    labels = {"train": np.repeat(np.arange(8), 2), "val": np.array([0, 2, 3, 4, 5, 6, 7]), "test": np.array([7, 7])}
    splits = {}
    for split, own in labels.items():
        pixels = np.random.default_rng(len(own)).integers(0, 256, (len(own), 8, 8), dtype=np.uint8)
        splits[split] = Split(tuple(f"{split}/{i}" for i in range(len(own))), own, ArrayImages(pixels))
    rows = load_rows(embed(ImageDataset("letters", tuple("abcdefgh"), splits)).run().cache)
    assert "classes without validation rows: b, nothing is chosen by them" in rows.notes
    assert "classes without test rows: a, b, c, d, e and 2 more, their recall is not known" in rows.notes


def test_maps_are_refused_or_averaged(cache: Cache, folder: Path, embed: Embed) -> None:
    maps = embed(folder, cut=2).run().cache
    with pytest.raises(UserError, match="holds maps .cut after layer1., and heads need vectors: --pool averages maps"):
        load_rows(maps)
    rows = load_rows(maps, pool_maps=True)
    assert rows.train.features.shape == (36, 64)
    expected = maps.splits["test"].load().mean(axis=(-2, -1))
    np.testing.assert_array_equal(rows.test.features.load(), expected)
    assert (
        "the maps of resnet18 after layer1, 64 x 8 x 8, are averaged over their 8 x 8 positions: 64 features"
        in rows.notes
    )
    assert_same(load_rows(cache, pool_maps=True), load_rows(cache))


def test_views_are_all_taken_or_the_plain_one(embed: Embed, folder: Path) -> None:
    cache = embed(folder, augmentation=VIEWS).run().cache
    rows, plain = load_rows(cache), load_rows(cache, views="plain")
    assert (rows.train.features.n_views, plain.train.features.n_views) == (3, 1)
    for part, other in ((rows.dev, plain.dev), (rows.test, plain.test)):
        np.testing.assert_array_equal(part.features.load(), other.features.load())
    told = "2 augmented views of each image are in the cache; heads "
    average = "train on all of them, each counting 1 / 3, and average at test time"
    assert told + average in rows.notes
    assert told + "take the plain one" in plain.notes
    assert rows.fingerprint == plain.fingerprint
    with pytest.raises(UsageError, match="unknown choice of --views 'some'"):
        load_rows(cache, views="some")


def test_caches_of_the_same_images_are_put_side_by_side(
    cache: Cache, embed: Embed, folder: Path, larger: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps, other = embed(folder, cut=4).run().cache, embed(folder, backbone=larger).run().cache
    alone = load_rows(cache)
    rows = load_rows([cache, maps, other], pool_maps=True)
    assert rows.fingerprint == alone.fingerprint
    assert rows.train.ids == alone.train.ids
    assert rows.train.features.shape == (36, 512 + 256 + 512)
    first, second, third = by_id(cache), by_id(maps), by_id(other)
    for part in (rows.train, rows.val, rows.test, rows.dev):
        expected = [np.concatenate([first[i], second[i].mean(axis=(-2, -1)), third[i]]) for i in part.ids]
        np.testing.assert_array_equal(part.features.load(), np.stack(expected))
    assert rows.notes[0] == (
        "features of 3 caches side by side, joined by id and content: resnet18 after layer4 (512), "
        "resnet18 after layer3 (256), resnet18 after layer4 (512)"
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
    np.testing.assert_array_equal(rows.test.features.expanded().load(), expected.reshape(-1, 1024))
    np.testing.assert_array_equal(rows.test.features.view(2).load(), expected[:, 2])
    for other in caches[2:]:
        plain = load_rows([caches[0], other])
        assert plain.test.features.n_views == 1
        told = "2 augmented views of each image are in the cache; heads take the plain one, since the caches"
        assert any(note.startswith(told) for note in plain.notes)
        whole = other.splits["test"].load()
        expected = np.concatenate([first[:, 0], whole[:, 0] if whole.ndim == 3 else whole], axis=1)
        np.testing.assert_array_equal(plain.test.features.load(), expected)


def test_damage_is_told_when_kept_rows_are_loaded(cache: Cache) -> None:
    flip(cache, "train", "features", 3)
    with pytest.raises(CacheError, match="/train/features, rows 0 to 39, do not match their checksum"):
        load_rows(Cache.open(cache.path))


def test_validation_is_carved_from_every_class_that_has_two_rows() -> None:
    y = np.repeat(np.arange(3), (2, 10, 40))
    train, val = carve_validation(y, fraction=0.1, seed=3)
    assert np.bincount(y[val]).tolist() == [1, 1, 4]
    np.testing.assert_array_equal(np.sort(np.concatenate([train, val])), np.arange(52))
    with pytest.raises(UserError, match="class 'bee' has one training row, validation needs at least two"):
        carve_validation(np.array([0, 0, 1]), class_names=["ant", "bee"])
    for fraction in (0.0, 1.0, -0.1):
        with pytest.raises(UsageError, match="the validation fraction is .*, expected more than 0 and less than 1"):
            carve_validation(np.array([0, 0]), fraction=fraction)
