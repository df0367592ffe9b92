"""A split as torch's Dataset and as pandas' DataFrame: the cache's rows, checked, in any process."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from making import flip
from torch.utils.data import DataLoader

from featcache.cache import torch_dataset
from featcache.cache.cache_file import Cache
from featcache.cache.frames import COLUMNS, columns
from featcache.common.errors import CacheError, UserError
from featcache.embedding.job import Embedding

Embed = Callable[..., Embedding]


@pytest.fixture
def dirty(folder: Path, embed: Embed) -> Cache:
    """One training row has no features."""
    (folder / "train/red/003.jpg").write_text("no picture")
    return embed(folder).run().cache


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")  # as PyTorch's DataLoader forks
@pytest.mark.parametrize("kept_bytes", [torch_dataset.KEPT_BYTES, 0])
def test_pairs_are_the_usable_rows(dirty: Cache, monkeypatch: pytest.MonkeyPatch, kept_bytes: int) -> None:
    monkeypatch.setattr(torch_dataset, "KEPT_BYTES", kept_bytes)
    split = dirty.splits["train"]
    dataset = split.torch_dataset()
    assert len(dataset) == 39
    features, label = dataset[5]
    assert (features.dtype, features.shape) == (torch.float32, (96,))
    rows = split.usable()
    np.testing.assert_array_equal(features.numpy(), split.load(rows[5:6])[0])
    assert label == split.labels[rows[5]]
    batches = list(DataLoader(dataset, batch_size=16, num_workers=2))
    np.testing.assert_array_equal(torch.cat([x for x, _ in batches]).numpy(), split.load(rows))
    np.testing.assert_array_equal(torch.cat([y for _, y in batches]).numpy(), split.labels[rows])
    with pytest.raises(IndexError):
        dataset[39]
    assert [label for _, label in split.torch_dataset(np.array([7, 2]))] == split.labels[[7, 2]].tolist()


def test_booleans_choose_rows_and_are_no_row_numbers(cache: Cache) -> None:
    split = cache.splits["train"]
    mask = split.labels == 1
    dataset = split.torch_dataset(mask)
    np.testing.assert_array_equal(dataset.rows, np.flatnonzero(mask))
    np.testing.assert_array_equal(torch.stack([features for features, _ in dataset]).numpy(), split.load(mask))
    assert {label for _, label in dataset} == {1}
    with pytest.raises(IndexError, match="train has 40 rows; asked for by booleans of shape"):
        split.torch_dataset(mask[1:])
    with pytest.raises(IndexError, match="train has 40 rows; asked for rows 40 to 40"):
        split.torch_dataset([40])
    with pytest.raises(TypeError, match="rows are float64"):
        split.torch_dataset(np.array([0.5]))
    with pytest.raises(TypeError, match="indices are booleans; expected integers: give the mask to torch_dataset"):
        next(iter(DataLoader(torch.utils.data.Subset(split.torch_dataset(), mask))))


def test_a_dataset_is_sent_without_its_features(cache: Cache) -> None:
    dataset = cache.splits["train"].torch_dataset()
    _ = dataset[0]
    again = pickle.loads(pickle.dumps(dataset))
    assert len(pickle.dumps(dataset)) < 10_000
    assert torch.equal(again[3][0], dataset[3][0])


def test_damage_is_an_error(cache: Cache) -> None:
    flip(cache, "train", "features", 3)
    with pytest.raises(CacheError, match="do not match their checksum"):
        _ = Cache.open(cache.path).splits["train"].torch_dataset()[0]


def test_a_frame_holds_the_rows(dirty: Cache, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    split = dirty.splits["train"]
    frame = split.to_pandas()
    told = columns(split)
    assert list(frame.index) == told["id"]
    assert list(frame.columns) == ["label", "class", "status", "content"]
    for name in frame.columns:
        assert frame[name].tolist() == told[name]
    assert frame.loc["train/red/003.jpg", "status"] == "damaged image"
    wide = split.to_pandas(features=True)
    pandas.testing.assert_frame_equal(wide[frame.columns], frame)
    values = wide.drop(columns=frame.columns)
    assert values.columns[95] == "feature_95"
    assert (values.dtypes == np.float32).all()
    rows = split.usable()
    np.testing.assert_array_equal(values.to_numpy()[rows], split.load(rows))
    assert values.loc["train/red/003.jpg"].isna().all()
    pytest.importorskip("pyarrow")
    wide.to_parquet(tmp_path / "train.parquet")
    pandas.testing.assert_frame_equal(pandas.read_parquet(tmp_path / "train.parquet"), wide)
    assert set(COLUMNS) == set(told)


def test_maps_fit_no_table(embed: Embed, folder: Path) -> None:
    pytest.importorskip("pandas")
    with pytest.raises(UserError, match=r"a row of test has 32 x 8 x 8 features; a table takes vectors"):
        embed(folder, cut=1).run().cache.splits["test"].to_pandas(features=True)


def test_without_pandas_the_extra_is_named(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"pandas is not installed: pip install 'featcache\[pandas\]'"):
        cache.splits["train"].to_pandas()
