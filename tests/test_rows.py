"""Rows for heads: chosen and split once, the same kept or streamed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from making import flip
from row_checks import VIEWS, Embed, MakeFolder, assert_same, by_id

from featcache.cache.cache_file import Cache
from featcache.common import hashing
from featcache.common.errors import CacheError, UsageError, UserError
from featcache.sources.image_sets import ArrayImages, ImageDataset, Split
from featcache.tables.subset import Subset
from heads.cached_features import CachedFeatures
from heads.features import ArrayFeatures
from heads.joined_features import StackedFeatures
from heads.rows import KEPT_BYTES, carve_validation, load_rows, rows_fingerprint


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
    red = rows.dev.labels == 1
    some = rows.dev.take(red)
    assert some.ids == tuple(np.array(rows.dev.ids)[red].tolist())
    np.testing.assert_array_equal(some.features.load(), rows.dev.features.load()[red])


def test_the_fingerprint_is_that_of_all_ids_and_labels(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = load_rows(cache)
    told = [[list(part.ids), part.labels.tolist()] for part in (rows.train, rows.val, rows.test)]
    assert rows.fingerprint == hashing.fingerprint(told)
    monkeypatch.setattr("heads.rows._DIGESTED_AT_ONCE", 7)
    assert rows_fingerprint(rows.train, rows.val, rows.test) == rows.fingerprint
    odd = replace(rows.test, ids=tuple(f'ü"\\\n{i}' for i in range(12)))
    assert rows_fingerprint(odd) == hashing.fingerprint([[list(odd.ids), odd.labels.tolist()]])
    assert rows_fingerprint(rows.test.take(np.array([], np.int64))) == hashing.fingerprint([[[], []]])


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
    assert "classes without validation rows: b, a choice by validation rows knows nothing of them" in rows.notes
    assert "classes without test rows: a, b, c, d, e and 2 more, their recall is not known" in rows.notes


def test_maps_are_refused_or_averaged(cache: Cache, folder: Path, embed: Embed) -> None:
    maps = embed(folder, cut=2).run().cache
    with pytest.raises(UserError, match="holds maps .cut after layer1., and heads need vectors: --pool averages maps"):
        load_rows(maps)
    rows = load_rows(maps, pool_maps=True)
    assert rows.train.features.shape == (36, 32)
    expected = maps.splits["test"].load().mean(axis=(-2, -1))
    np.testing.assert_array_equal(rows.test.features.load(), expected)
    assert (
        "the maps of timm/test_resnet after layer1, 32 x 8 x 8, are averaged over their 8 x 8 positions: 32 features"
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


def test_damage_is_told_when_kept_rows_are_loaded(cache: Cache) -> None:
    flip(cache, "train", "features", 3)
    with pytest.raises(CacheError, match="/train/features, rows 0 to 39, do not match their checksum"):
        load_rows(Cache.open(cache.path))


def test_validation_is_carved_from_every_class_that_has_two_rows() -> None:
    y = np.repeat(np.arange(4), (1, 2, 10, 40))
    train, val = carve_validation(y, fraction=0.1, seed=3)
    assert np.bincount(y[val]).tolist() == [0, 1, 1, 4]
    np.testing.assert_array_equal(np.sort(np.concatenate([train, val])), np.arange(53))
    with pytest.raises(UserError, match="no class has two training rows, of which validation would take one"):
        carve_validation(np.array([0, 1]))
    for fraction in (0.0, 1.0, -0.1):
        with pytest.raises(UsageError, match="the validation fraction is .*, expected more than 0 and less than 1"):
            carve_validation(np.array([0, 0]), fraction=fraction)
