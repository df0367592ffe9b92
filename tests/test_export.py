"""Plain files of a cache: the same numbers, whole or not there, and no name from a cache becomes a path."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featcache.cache.cache_file import Cache
from featcache.cache.split import CachedSplit
from featcache.common.errors import CacheError, UserError
from featcache.embedding.job import Embedding
from featcache.maintenance.export import COLUMNS, export
from featcache.sources.image_sets import load_dataset

Embed = Callable[..., Embedding]
Run = Callable[..., tuple[int, str, str]]


def test_the_files_hold_what_the_cache_holds(embed: Embed, folder: Path, tmp_path: Path) -> None:
    (folder / "train/red/003.jpg").write_text("no picture")
    cache = embed(folder).run().cache
    done: list[tuple[int, int]] = []
    exported = export(cache, tmp_path / "out", on_progress=lambda *each: done.append(each))
    assert done[-1] == (52, 52)
    assert exported.rows == 52
    assert set(exported.files) == {path.name for path in (tmp_path / "out").iterdir()}
    for name, split in cache.splits.items():
        features = np.load(tmp_path / "out" / f"{name}-features.npy", allow_pickle=False)
        assert features.dtype == np.float16
        np.testing.assert_array_equal(features, split.read())
        with (tmp_path / "out" / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert tuple(rows[0]) == COLUMNS
        assert [row["id"] for row in rows] == list(split.ids)
        assert [int(row["row"]) for row in rows] == list(range(len(split)))
        assert [int(row["label"]) for row in rows] == split.labels.tolist()
        assert [row["class"] for row in rows] == [cache.class_names[label] for label in split.labels]
        assert [row["content"] for row in rows] == [digest.tobytes().hex() for digest in split.content]
        assert [row["status"] == "ok" for row in rows] == (split.status == 0).tolist()
    told = json.loads((tmp_path / "out" / "encoder.json").read_text())
    assert told["encoder"] == cache.encoder
    assert told["class_names"] == ["green", "red"]


def test_maps_and_many_blocks(embed: Embed, folder: Path, tmp_path: Path) -> None:
    cache = embed(folder, cut=2, storage="float32").run().cache
    export(cache, tmp_path / "out")
    maps = np.load(tmp_path / "out" / "train-features.npy")
    assert len(cache.splits["train"].checksums) > 1
    assert maps.shape == (40, *cache.splits["train"].row_shape)
    np.testing.assert_array_equal(maps, cache.splits["train"].read())


def test_unlabelled_rows_have_no_class(embed: Embed, folder: Path, tmp_path: Path) -> None:
    dataset = load_dataset(str(folder))
    labels = dataset.splits["test"].labels.copy()
    labels[5] = -1
    test = replace(dataset.splits["test"], labels=labels)
    cache = embed(replace(dataset, splits={**dataset.splits, "test": test})).run().cache
    export(cache, tmp_path / "out")
    with (tmp_path / "out" / "test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert (rows[5]["label"], rows[5]["class"]) == ("-1", "")
    assert rows[6]["class"] in cache.class_names


def test_ids_are_values_and_never_paths(embed: Embed, folder: Path, tmp_path: Path) -> None:
    odd = ('train/a,"b"\r\n=1+1', "train/'; DROP", "c:\\windows", "train/é字\t")
    dataset = load_dataset(str(folder))
    train = dataset.splits["train"]
    train = replace(train, ids=(*odd, *train.ids[len(odd) :]))
    cache = embed(replace(dataset, splits={**dataset.splits, "train": train})).run().cache
    before = set(tmp_path.rglob("*"))
    export(cache, tmp_path / "out")
    names = {"train-features.npy", "test-features.npy", "train.csv", "test.csv", "encoder.json"}
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "out", *(tmp_path / "out" / name for name in names)}
    with (tmp_path / "out" / "train.csv").open(newline="", encoding="utf-8") as file:
        assert [row["id"] for row in csv.DictReader(file)][: len(odd)] == list(odd)


def test_a_folder_that_holds_something_is_refused(cache: Cache, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export(cache, out)  # an empty one is fine
    before = {path: path.read_bytes() for path in out.iterdir()}
    for taken in (out, cache.path):
        with pytest.raises(UserError, match="is there already; name a folder that is not, or is empty"):
            export(cache, taken)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is there already"):
        export(cache, tmp_path / "link")
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_damage_is_met_while_reading_and_nothing_is_left(cache: Cache, tmp_path: Path) -> None:
    stored = cache.splits["test"].stored["features"]
    with cache.path.open("r+b") as file:
        file.seek(stored.offset)
        file.write(b"\xff\xff")
    before = set(tmp_path.iterdir())
    with pytest.raises(CacheError, match="/test/features, rows 0 to 11, do not match their checksum"):
        export(Cache.open(cache.path), tmp_path / "out")
    assert set(tmp_path.iterdir()) == before


def test_features_are_never_read_at_once(
    embed: Embed, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = embed(folder, cut=2, storage="float32").run().cache
    monkeypatch.setattr(CachedSplit, "read", None)
    monkeypatch.setattr(CachedSplit, "load", None)
    original = CachedSplit.blocks
    sizes = []

    def blocks(self: CachedSplit, data_set: str, *arguments: object, **settings: object) -> object:
        for block, values in original(self, data_set, *arguments, **settings):
            if data_set == "features":
                sizes.append(len(values))
            yield block, values

    monkeypatch.setattr(CachedSplit, "blocks", blocks)
    export(cache, tmp_path / "out")
    assert sum(sizes) == 52
    assert max(sizes) <= cache.splits["train"].block_rows < 40


def test_parquet_holds_the_same_table(cache: Cache, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    export(cache, tmp_path / "out", table="parquet")
    table = parquet.read_table(tmp_path / "out" / "train.parquet").to_pydict()
    assert tuple(table) == COLUMNS
    assert table["id"] == list(cache.splits["train"].ids)
    assert table["label"] == cache.splits["train"].labels.tolist()
    assert not (tmp_path / "out" / "train.csv").exists()


def test_without_pyarrow_the_extra_is_named(
    cache: Cache, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    status, _, err = run("cache", "export", cache.path, "out", "--format", "parquet")
    assert (status, err) == (1, "cache: error: pyarrow is not installed: pip install 'featcache[parquet]'\n")
    assert not (tmp_path / "out").exists()


def test_the_command_tells_what_it_wrote(cache: Cache, run: Run, tmp_path: Path) -> None:
    status, out, _ = run("cache", "export", cache.path.name, "./deep/out")
    assert status == 0
    assert f"{tmp_path}/deep/out: 52 rows" in out
    told = json.loads(run("cache", "export", cache.path, "again", "--json")[1])
    assert told["rows"] == 52
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == sorted(told["files"])
