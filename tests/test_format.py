"""The format is pinned: a file written once must read the same for ever, and today's builder must write the same.

``golden_cache.h5.gz`` was written by ``built`` below. A change that fails here is a new format version.
"""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from featcache.build.builder import CacheBuilder
from featcache.build.plan import Plan, PlannedRows
from featcache.cache import file_format
from featcache.cache.cache_file import Cache
from featcache.cache.canary import Canary, stored_canary
from featcache.common.errors import CacheError

GOLDEN = Path(__file__).with_name("golden_cache.h5.gz")
ENCODER = {
    "backbone": "tiny",
    "weights": {"sha256": "00" * 32},
    "preprocessing": {"image_size": 4, "mean": [0.5, 0.5, 0.5]},
    "cut": "stem",
    "precision": "fp32",
    "engine": "eager",
    "storage": "float16",
    "views": 0,
}
FEATURES = {"train": np.arange(15).reshape(5, 3) / 8, "test": -np.arange(6).reshape(2, 3) / 4}
IDS = {"train": ("träin/a/1.jpg", "train/a/2.jpg", "train/b/1.jpg", "train/b/2.jpg", "3"), "test": ("t/1", "t/22")}
LABELS = {"train": [0, 0, 1, 1, -1], "test": [1, 0]}
CANARY = Canary(("one.png",), np.array([[1, 2, 3]], np.float16), np.arange(16, dtype=np.uint8).reshape(1, 16))
PROVENANCE = {
    "source": {"dataset": "golden", "selection": {}, "notes": ["made by hand"], "folder": None},
    "weights": "none",
    "batch": 2,
    "threads": 1,
    "hardware": {"machine": "none"},
    "versions": {"featcache": "0.1.0"},
    "trunk_parameters": 7,
    "command": [],
    "working_folder": "",
}


def built(path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """The golden cache, by today's builder."""
    splits = {
        name: PlannedRows(ids, np.array(LABELS[name]), np.arange(16 * len(ids), dtype=np.uint8).reshape(-1, 16))
        for name, ids in IDS.items()
    }
    source = {"dataset": "golden", "selection": {}}
    plan = Plan(encoder=ENCODER, class_names=("a", "ß"), splits=splits, source=source, feature_shape=(3,))
    path.parent.mkdir(exist_ok=True)
    told = {**PROVENANCE, "fingerprint": plan.fingerprint}
    monkeypatch.setattr("featcache.build.builder._now", lambda: "2026-01-01T00:00:00.000000Z")
    builder = CacheBuilder.create_or_resume(path.with_name(plan.file_name), plan, told, CANARY)
    builder.look()
    for name, rows in builder.groups(2):
        status = np.where((name == "train") & (rows == 1), file_format.DAMAGED, file_format.OK).astype(np.uint8)
        features = np.where(status[:, None] == file_format.OK, FEATURES[name][rows], 0).astype(np.float16)
        errors = {IDS[name][row]: "no picture" for row in rows[status != file_format.OK].tolist()}
        builder.put(name, rows, features, status, errors)
    assert not builder.look()
    try:
        return Cache.open(builder.seal(seconds=1.5))
    finally:
        builder.close(seconds=0)


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    path = tmp_path / "golden.h5"
    path.write_bytes(gzip.decompress(GOLDEN.read_bytes()))
    return path


def test_the_golden_file_says_what_it_always_said(golden: Path) -> None:
    cache = Cache.open(golden)
    assert cache.encoder == ENCODER
    assert cache.class_names == ("a", "ß")
    assert cache.provenance["root_digest"] == "5a6cfeeef03885969cf4026877fa3a16"
    assert cache.fingerprint == "64f64455f211de05302f016638b7a2fe"
    assert cache.encoder_fingerprint == "f2bcd38e4f4fd53c85b731799785243c"
    train = cache.splits["train"]
    assert train.ids == IDS["train"]
    assert train.labels.tolist() == LABELS["train"]
    assert train.status.tolist() == [0, 1, 0, 0, 0]
    assert train.origin.tolist() == [0] * 5
    assert train.usable().tolist() == [0, 2, 3]
    assert train.errors == {"train/a/2.jpg": "no picture"}
    expected = FEATURES["train"].copy()
    expected[1] = 0
    np.testing.assert_array_equal(train.read(), expected.astype(np.float16))
    np.testing.assert_array_equal(cache.splits["test"].load(), FEATURES["test"])
    canary = stored_canary(cache)
    assert canary.ids == CANARY.ids
    np.testing.assert_array_equal(canary.features, CANARY.features)
    np.testing.assert_array_equal(canary.pixels, CANARY.pixels)
    assert cache.damages() == []


def test_todays_builder_writes_the_golden_file(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again, pinned = built(tmp_path / "features" / "x", monkeypatch), Cache.open(golden)
    assert again.path.name == "golden-tiny-64f64455.h5"
    assert again.provenance == pinned.provenance
    for name, split in pinned.splits.items():
        for part, stored in split.stored.items():
            assert again.splits[name].stored[part].read().tobytes() == stored.read().tobytes(), f"{name}/{part}"


def test_a_finished_file_is_not_replaced_unless_it_is_damaged(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "features" / "golden-tiny-64f64455.h5"
    path.parent.mkdir()
    shutil.copy(golden, path)
    with h5py.File(path, "r+"), pytest.raises(CacheError, match="open for writing in another process; close it there"):
        built(path, monkeypatch)
    assert path.read_bytes() == golden.read_bytes()
    assert len(list(path.parent.glob(".*.partial"))) == 1  # with all rows, for the next build
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 3
    with pytest.raises(CacheError, match="upgrade it"):
        built(path, monkeypatch)
    path.write_bytes(golden.read_bytes()[:-1])
    assert Cache.open(built(path, monkeypatch).path).damages() == []


def test_another_language_would_find_all_of_it(golden: Path) -> None:
    """By h5py alone, as FORMAT.md shows."""
    with h5py.File(golden) as file:
        assert (file.attrs["format"], file.attrs["format_version"]) == (b"featcache", 2)
        assert [name.decode() for name in file.attrs["class_names"]] == ["a", "ß"]
        assert json.loads(file.attrs["encoder"]) == ENCODER
        assert json.loads(file["provenance"][()])["sealed"] is True
        train = file["train"]
        assert train["ids"].asstr()[0] == "träin/a/1.jpg"
        assert train["features"].dtype == np.float16
        offset = train["features"].id.get_offset()
        assert offset % file_format.ALIGNMENT == 0
        assert golden.read_bytes()[offset : offset + 30] == train["features"][()].tobytes()
        assert train["checksums"].dtype.names == file_format.CHECKED


@pytest.mark.parametrize(("version", "mend"), [(3, "upgrade it"), (1, "embed again")])
def test_other_versions_are_refused_by_name(golden: Path, version: int, mend: str) -> None:
    with h5py.File(golden, "r+") as file:
        file.attrs["format_version"] = version
    told = f"golden.h5: format version {version}, but this is featcache for version 2; {mend}"
    with pytest.raises(CacheError, match=told):
        Cache.open(golden)
