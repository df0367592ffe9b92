"""Cache files: readable by anyone, and refused where they are not what they should be."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import BACKBONE
from making import golden

from featcache.cache import file_format
from featcache.cache.cache_file import Cache, find_caches
from featcache.common import hashing
from featcache.common.errors import CacheError
from featcache.common.locks import is_open_for_writing
from featcache.embedding.job import Embedding
from featcache.models.backbones import Backbone, load_backbone
from featcache.sources.augmented_views import Augmentation
from featcache.sources.preprocessing import Preprocessing


def test_plain_h5py_reads_it(cache: Cache) -> None:
    with h5py.File(cache.path) as file:
        assert file.attrs["format"] == b"featcache"
        assert file.attrs["format_version"] == file_format.FORMAT_VERSION
        assert [name.decode() for name in file.attrs["class_names"]] == ["green", "red"]
        assert json.loads(file.attrs["encoder"]) == cache.encoder
        provenance = json.loads(file["provenance"][()])
        assert provenance["sealed"] is True
        train = file["train"]
        assert set(file) == {"provenance", "canary", "train", "test"}
        assert set(train) == {*file_format.CHECKED, "errors", "checksums"}
        assert train["features"].shape == (40, 96)
        assert train["features"].dtype == np.float16
        assert train["features"].chunks is None
        assert train["features"].id.get_offset() % file_format.ALIGNMENT == 0
        assert train["ids"].asstr()[0] == "train/green/000.jpg"
        assert (train["status"][()] == 0).all()
        np.testing.assert_array_equal(train["features"][()].astype(np.float32), cache.splits["train"].load())
        np.testing.assert_array_equal(train["labels"][()], np.repeat([0, 1], 20))


def test_some_rows_are_loaded_as_they_stand(cache: Cache) -> None:
    split = cache.splits["train"]
    rows = np.array([0, 7, 31])
    np.testing.assert_array_equal(split.load(rows), split.load()[rows])
    assert split.load(np.array([], dtype=np.int64)).shape == (0, 96)
    np.testing.assert_array_equal(split.load(split.labels == 1), split.load()[20:])
    with pytest.raises(IndexError, match="train has 40 rows; asked for by booleans of shape"):
        split.load(np.ones(39, bool))
    with pytest.raises(TypeError, match="rows are float64"):
        split.load(np.array([0.5]))


@pytest.mark.parametrize("data_set", file_format.CHECKED)
def test_a_flipped_bit_is_caught_and_placed(cache: Cache, data_set: str) -> None:
    stored = cache.splits["test"].stored[data_set]
    with cache.path.open("r+b") as file:
        file.seek(stored.offset + stored.n_bytes // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 4]))
    split = Cache.open(cache.path).splits["test"]
    with pytest.raises(CacheError, match=f"/test/{data_set}, rows 0 to 11, do not match their checksum"):
        split.load() if data_set == "features" else getattr(split, data_set)


def test_a_flipped_bit_in_what_describes_the_rows_is_caught(cache: Cache) -> None:
    data = bytearray(cache.path.read_bytes())
    for marker in (b"green", b'"backbone"', b'"cost"', cache.encoder_fingerprint.encode()):
        changed = data.copy()
        changed[changed.index(marker) + 1] ^= 1
        cache.path.write_bytes(changed)
        with pytest.raises(CacheError):
            Cache.open(cache.path)
    cache.path.write_bytes(data)
    assert Cache.open(cache.path).fingerprint == cache.fingerprint


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(cache: Cache, share: float) -> None:
    data = cache.path.read_bytes()
    cache.path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CacheError, match="cut off, damaged, or no feature cache"):
        Cache.open(cache.path)


def test_other_files_are_refused(cache: Cache, tmp_path: Path) -> None:
    other = tmp_path / "other.h5"
    with pytest.raises(CacheError, match="no such cache"):
        Cache.open(other)
    with h5py.File(other, "w") as file:
        file["x"] = np.arange(3)
    with pytest.raises(CacheError, match="an HDF5 file, but no feature cache"):
        Cache.open(other)
    shutil.copy(cache.path, other)
    with h5py.File(other, "r+") as file:
        file.attrs["format_version"] = 99
    with pytest.raises(CacheError, match="format version 99, but this is featcache for version 2; upgrade"):
        Cache.open(other)


def test_an_error_says_of_what_kind_it_is(tmp_path: Path) -> None:
    path = golden(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(CacheError, match="241,759 of 241,760 bytes") as caught:
        Cache.open(path)
    error = pickle.loads(pickle.dumps(caught.value))  # as it comes from another process
    assert (error.path, error.kind, str(error)) == (path, "corrupt", f"{path}: {error.reason}")
    assert error.is_damage
    path.unlink()
    with pytest.raises(CacheError, match="no such cache") as caught:
        Cache.open(path)
    assert (caught.value.kind, caught.value.is_damage, caught.value.may_be_sound) == ("absent", False, False)
    path.mkdir()
    with pytest.raises(CacheError, match="no regular file") as caught:
        Cache.open(path)
    assert caught.value.kind == "foreign"


def test_a_cache_that_another_process_writes_to_is_in_use(tmp_path: Path) -> None:
    path = golden(tmp_path)
    Cache.open(path)
    assert not is_open_for_writing(path)
    for locking in (True, False):
        with h5py.File(path, "r+", locking=locking):
            with pytest.raises(CacheError, match="open for writing in another process; close it there") as caught:
                Cache.open(path)
            assert (caught.value.kind, caught.value.path) == ("in use", path)
            assert is_open_for_writing(path) or not locking
    assert Cache.open(path).class_names == ("a", "ß")
    assert not is_open_for_writing(path)


def test_another_encoder_is_refused_by_the_fields_that_differ(cache: Cache) -> None:
    cache.require(dataset="pictures", backbone=BACKBONE, precision=None)
    with pytest.raises(CacheError, match="backbone is timm/test_resnet, not resnet50; precision is fp32, not bf16"):
        cache.require(backbone="resnet50", precision="bf16")


def test_caches_are_found_newest_first(folder: Path, embed: Callable[..., Embedding]) -> None:
    older, newer = (embed(folder, storage=storage).run().cache for storage in ("float32", "float16"))
    (older.path.parent / "junk.h5").write_bytes(b"junk")
    older.path.touch()  # the recorded time counts, not the file system's
    refusals: list[CacheError] = []
    found = find_caches(older.path.parent, on_refusal=refusals.append)
    assert [cache.path for cache in found] == [newer.path, older.path]
    assert [error.path.name for error in refusals if error.path] == ["junk.h5"]
    assert find_caches(Path("nowhere")) == []


def variants(value: object) -> list[object]:
    """The same JSON value with one leaf changed, for each leaf."""
    if isinstance(value, dict):
        return [{**value, key: changed} for key in value for changed in variants(value[key])]
    if isinstance(value, (list, tuple)):
        return [[*value[:i], changed, *value[i + 1 :]] for i in range(len(value)) for changed in variants(value[i])]
    if isinstance(value, bool):
        return [not value]
    return [value + 1] if isinstance(value, (int, float)) else [f"{value}x"]


def test_every_encoder_field_changes_the_fingerprint(cache: Cache) -> None:
    fingerprints = [hashing.fingerprint(encoder) for encoder in [cache.encoder, *variants(cache.encoder)]]
    assert fingerprints[0] == cache.encoder_fingerprint
    assert len(set(fingerprints)) == len(fingerprints) > 20


def test_every_setting_is_a_field_of_the_encoder(backbone: Backbone) -> None:
    """Of the objects, not of their JSON: a new setting that is not recorded fails here."""
    settings = {"cut": None, "precision": "fp32", "storage": "float16", "augmentation": Augmentation(views=2, seed=0)}
    plain = backbone.encoder(**settings)
    others = [{**settings, **change} for change in ({"cut": 2}, {"precision": "bf16"}, {"storage": "float32"})]
    encoders = [backbone.encoder(**other) for other in [*others, {**settings, "augmentation": None}]]
    for part, kind in (("preprocessing", Preprocessing), ("augmentation", Augmentation)):
        made = backbone.preprocessing if part == "preprocessing" else settings["augmentation"]
        for name in kind.__dataclass_fields__:
            for value in variants(getattr(made, name)):
                changed = copy.copy(made)
                object.__setattr__(changed, name, value)  # past the validation: any value must be told
                if part == "preprocessing":
                    encoders.append(replace(backbone, preprocessing=changed).encoder(**settings))
                else:
                    encoders.append(backbone.encoder(**{**settings, "augmentation": changed}))
    seeded = load_backbone(BACKBONE, weights="none", image_size=32, seed=1)
    encoders += [seeded.encoder(**settings), replace(backbone, name="resnet34").encoder(**settings)]
    fingerprints = [hashing.fingerprint(encoder) for encoder in [plain, *encoders]]
    assert len(set(fingerprints)) == len(fingerprints) > 20
