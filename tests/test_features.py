"""Features in memory and in caches: the same rows, views and averages, however and by how many threads read."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from making import flip
from stored_features import half, split_of

from featcache.cache import file_format
from featcache.cache.cache_file import Cache
from featcache.cache.raw_reads import CacheFile, Stored
from featcache.cache.split import CachedSplit
from featcache.common import hashing
from featcache.common.errors import CacheError
from featcache.embedding.job import Embedding
from featcache.models.backbones import Backbone
from featcache.sources.augmented_views import Augmentation
from heads.cached_features import CachedFeatures, features_of, pooled, positions
from heads.features import ArrayFeatures, Features, as_features, as_slice
from heads.joined_features import JoinedFeatures, joined, stacked

Embed = Callable[..., Embedding]
VIEWS = Augmentation(views=2, seed=5)


@pytest.fixture(params=["array", "cached", "joined", "stacked", "kept"])
def features(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Features, np.ndarray]:
    """Features of 103 images in 3 views, and the same as an array (103, 3, 12)."""
    values = half(103, 3, 12)
    whole = values.astype(np.float32)
    split = split_of(tmp_path / "a", values)
    made: dict[str, Callable[[], Features]] = {
        "array": lambda: ArrayFeatures(values),
        "cached": lambda: CachedFeatures(split, 3),
        "kept": lambda: CachedFeatures(split, 3).kept(),
        "joined": lambda: joined(
            [ArrayFeatures(values[:, :, :5]), CachedFeatures(split_of(tmp_path / "b", values[:, :, 5:].copy()), 3)]
        ),
        "stacked": lambda: stacked(
            [
                ArrayFeatures(values).take(np.arange(20)),
                CachedFeatures(split, 3).take(np.arange(20, 70)),
                CachedFeatures(split_of(tmp_path / "b", values[70:]), 3),
            ]
        ),
    }
    return made[request.param](), whole


@pytest.mark.parametrize("number", [0, 1, 2])
def test_rows_and_views_are_those_of_the_array(features: tuple[Features, np.ndarray], number: int) -> None:
    X, whole = features
    assert (X.shape, X.n_views, len(X)) == ((103, 12), 3, 103)
    assert X.n_bytes == whole.nbytes
    rng = np.random.default_rng(number)
    for rows in (np.arange(103), np.sort(rng.permutation(103)[:60]), rng.integers(0, 103, 200), np.array([], np.int64)):
        some, expected = X.take(rows), whole[rows]
        assert (some.shape, some.n_views) == ((len(rows), 12), 3)
        np.testing.assert_array_equal(some.load(), expected[:, 0])
        np.testing.assert_array_equal(some.kept().view(number).load(), expected[:, number])
        for each, wanted in (
            (some, expected[:, 0]),
            (some.view(number), expected[:, number]),
            (some.expanded(), expected.reshape(-1, 12)),
            (some.view(number).take(np.arange(len(rows))[::-2]), expected[::-2, number]),
            (some.expanded().take(np.arange(3 * len(rows))[1::4]), expected.reshape(-1, 12)[1::4]),
        ):
            assert each.shape == wanted.shape
            loaded = each.load()
            assert loaded.dtype == np.float32
            np.testing.assert_array_equal(loaded, wanted)
            streamed = np.empty_like(loaded)
            for at, block in each.blocks(7):
                assert block.dtype == np.float32
                streamed[at] = block
            assert streamed.tobytes() == loaded.tobytes()
            if each is not some:
                assert each.n_views == 1
                assert each.expanded().load().tobytes() == loaded.tobytes()


def test_many_threads_read_the_same(features: tuple[Features, np.ndarray]) -> None:
    X, whole = features
    starts = np.random.default_rng(0).integers(0, 100, 400)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda start: X.block(start, start + 3), starts.tolist()))
    np.testing.assert_array_equal(np.stack(found), whole[starts[:, None] + np.arange(3), 0])


def test_large_loads_by_several_threads_equal_the_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heads.cached_features.THREAD_BYTES", 1000)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    values = half(500, 20)
    X = CachedFeatures(split_of(tmp_path / "a", values))
    rows = np.random.default_rng(1).permutation(500)
    np.testing.assert_array_equal(X.load(), values.astype(np.float32))
    np.testing.assert_array_equal(X.take(rows).load(), values[rows].astype(np.float32))


def test_rows_in_a_row_are_not_copied_from_memory() -> None:
    values = half(50, 4).astype(np.float32)
    X = ArrayFeatures(values)
    assert X.load() is not None
    assert np.shares_memory(X.load(), values)
    assert np.shares_memory(X.block(3, 9), values)
    assert np.shares_memory(X.take(np.arange(10, 30)).block(3, 9), values)
    assert as_features(X) is X
    np.testing.assert_array_equal(as_features(values).load(), values)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([], slice(0, 0)),
        ([4], slice(4, 5)),
        ([2, 3, 4], slice(2, 5, 1)),
        ([1, 4, 7], slice(1, 8, 3)),
        ([1, 4, 6, 10], None),
        ([3, 2, 1], None),
        ([2, 2], None),
    ],
)
def test_even_numbers_are_a_slice(numbers: list[int], expected: slice | None) -> None:
    given = np.array(numbers, np.int64)
    found = as_slice(given)
    if expected is None:
        assert found is given
    else:
        assert found == expected
        np.testing.assert_array_equal(np.arange(20)[found], given)


@pytest.mark.parametrize(
    ("shape", "axes"), [((6, 4, 4), (2, 3)), ((4, 4, 6), (1, 2)), ((4, 4, 4), (2, 3)), ((9, 5), (1,))]
)
def test_pooling_is_numpys_mean_whatever_is_read_together(tmp_path: Path, shape: tuple[int, ...], axes: tuple) -> None:
    for views in (1, 3):
        values = half(41, *([views] if views > 1 else []), *shape)
        X = CachedFeatures(split_of(tmp_path / f"{views}", values, block_rows=4), views, pool=True)
        for number in range(views):
            plain = values[:, number] if views > 1 else values
            expected = plain.astype(np.float32).mean(axis=axes)
            assert X.shape == expected.shape
            assert X.view(number).load().tobytes() == expected.tobytes()
            each = [block for _, block in X.view(number).blocks(1)]
            assert np.concatenate(each).tobytes() == expected.tobytes()
            np.testing.assert_allclose(expected, plain.mean(axis=axes, dtype=np.float64), rtol=1e-5, atol=1e-6)


def test_positions_are_the_equal_sides() -> None:
    assert positions((96, 16, 16)) == (1, 2)
    assert positions((16, 16, 96)) == (0, 1)  # as Swin keeps its maps
    assert positions((197, 768)) == (0,)
    assert positions((512,)) == ()
    vectors = half(3, 5)
    np.testing.assert_array_equal(pooled(vectors), vectors)


def test_different_numbers_of_views_join_by_their_plain_ones() -> None:
    many, one = half(9, 3, 4).astype(np.float32), half(9, 2).astype(np.float32)
    X = joined([ArrayFeatures(many), ArrayFeatures(one)])
    expected = np.concatenate([many[:, 0], one], axis=1)
    assert (X.n_views, X.shape) == (1, (9, 6))
    for same in (X, X.expanded(), X.view(0), X.kept(), X.take(np.arange(9))):
        np.testing.assert_array_equal(same.load(), expected)
        np.testing.assert_array_equal(same.block(2, 5), expected[2:5])


def test_stacked_rows_of_one_store_stay_one(tmp_path: Path) -> None:
    split = split_of(tmp_path / "a", half(60, 4))
    X = CachedFeatures(split)
    both = stacked([X.take(np.arange(0, 60, 2)), X.take(np.arange(1, 60, 2))])
    assert isinstance(both, CachedFeatures)
    np.testing.assert_array_equal(both.load(), X.load()[np.r_[0:60:2, 1:60:2]])
    pairs = [joined([X.take(rows), ArrayFeatures(X.load()).take(rows)]) for rows in (np.arange(5), np.arange(9, 20))]
    columns = stacked(pairs)
    assert isinstance(columns, JoinedFeatures)
    np.testing.assert_array_equal(columns.load(), np.tile(X.load()[np.r_[0:5, 9:20]], 2))


def test_a_real_cache_streams_its_views_and_maps(embed: Embed, folder: Path, backbone: Backbone) -> None:
    for cut, width in ((None, 96), (backbone.staged.cut_after("layer2"), 48)):
        cache = embed(folder, augmentation=VIEWS, cut=cut).run().cache
        read = cache.splits["train"].load()
        expected = read if cut is None else read.mean(axis=(-2, -1))
        X = features_of(cache, "train", np.arange(40))
        assert (X.shape, X.n_views) == ((40, width), 3)
        for number in range(3):
            np.testing.assert_array_equal(X.view(number).load(), expected[:, number])
        np.testing.assert_array_equal(X.expanded().load(), expected.reshape(-1, width))


def test_a_damaged_block_is_told_when_it_is_read(cache: Cache) -> None:
    flip(cache, "train", "features", 3)
    damaged = features_of(Cache.open(cache.path), "train", np.arange(40))
    for read in (lambda: damaged.block(10, 12), damaged.load, damaged.kept):
        with pytest.raises(CacheError, match="/train/features, rows 0 to 39, do not match their checksum"):
            read()


STREAM = """
import json, sys
import numpy as np
from heads.cached_features import CachedFeatures
from heads.standardization import column_statistics
from test_features import opened

def peak():
    with open("/proc/self/status") as status:
        return int(status.read().partition("VmHWM:")[2].split()[0]) * 1024

split = opened(sys.argv[1])
X = CachedFeatures(split)
rows = np.flatnonzero(np.arange(len(split)) % 10 != 3)
X.block(0, 10)
before = peak()
mean, scale = column_statistics(X.take(rows))
print(json.dumps({"grown": peak() - before, "mean": float(mean[0]), "scale": float(scale[0])}))
"""


BIG = (120_000, 512, 256)


def opened(path: str) -> CachedSplit:
    """What the memory test wrote."""
    n_rows, width, block_rows = BIG
    file, n_blocks = CacheFile(Path(path)), -(-n_rows // block_rows)
    stored = {
        "checksums": Stored(file, 0, file_format.CHECKSUMS, (n_blocks,)),
        "features": Stored(file, n_blocks * file_format.CHECKSUMS.itemsize, np.dtype("<f2"), (n_rows, width)),
        "labels": Stored(file, 0, np.dtype("<i8"), (n_rows,)),
    }
    return CachedSplit("train", stored, block_rows=block_rows, class_names=("a", "b"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is told by /proc")
def test_rows_stream_in_a_fraction_of_their_memory(tmp_path: Path) -> None:
    n_rows, width, block_rows = BIG
    tile = half(block_rows, width)
    checksums = np.zeros(-(-n_rows // block_rows), file_format.CHECKSUMS)
    checksums["features"] = np.frombuffer(hashing.checksum(tile), np.uint8)
    rest = n_rows % block_rows
    checksums["features"][-1] = np.frombuffer(hashing.checksum(tile[: rest or block_rows]), np.uint8)
    with (tmp_path / "big").open("wb") as file:
        file.write(checksums.tobytes())
        for _ in range(n_rows // block_rows):
            file.write(tile.tobytes())
        file.write(tile[:rest].tobytes())
    done = subprocess.run(
        [sys.executable, "-c", STREAM, str(tmp_path / "big")],
        capture_output=True, check=True, cwd=Path(__file__).parent, text=True, timeout=200,
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert told["grown"] < 80e6  # of 246 MB as float32
    rows = np.flatnonzero(np.arange(n_rows) % 10 != 3)
    column = tile[rows % block_rows, 0].astype(np.float64)
    assert told["mean"] == pytest.approx(column.mean(), rel=1e-6)
    assert told["scale"] == pytest.approx(column.std(), rel=1e-6)
