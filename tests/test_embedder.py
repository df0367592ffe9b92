"""The transformer: the features of bin/embed, each image embedded once, in pipelines, searches and processes."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import BACKBONE, draw
from joblib import parallel_config
from making import files, flip, noise
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from featcache import Embedder
from featcache.cache.cache_file import Cache, find_caches
from featcache.common.errors import CacheError, UsageError, UserError
from featcache.embedding.job import Embedding
from featcache.maintenance.garbage import find_garbage
from featcache.sources.image_sets import load_dataset

Run = Callable[..., tuple[int, str, str]]
Embed = Callable[..., Embedding]


@pytest.fixture
def embedder(tmp_path: Path) -> Embedder:
    return Embedder(
        BACKBONE, weights="none", image_size=32, device="cpu", batch_size=8, cache_dir=tmp_path / "features"
    )


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Ten, of two colours and two sizes."""
    paths = [tmp_path / f"pictures/{i}.png" for i in range(10)]
    for i, path in enumerate(paths):
        draw(path, hue=i % 2, seed=i, size=(40 + 8 * (i % 2), 40))
    return paths


def some_noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8), dtype=np.uint8)


def store(embedder: Embedder) -> list[Cache]:
    return find_caches(Path(embedder.cache_dir, "embedder"))


def refuse_to_embed(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: Embedding, **settings: object) -> None:
        raise AssertionError("embedded anew")

    monkeypatch.setattr(Embedding, "run", run)


def test_features_are_those_that_a_cache_holds(embedder: Embedder, embed: Embed) -> None:
    dataset = noise(20)
    expected = embed(dataset).run().cache.splits["train"].load()
    pixels = dataset.splits["train"].images.read(range(20)).pixels
    shutil.rmtree(embedder.cache_dir)
    features = embedder.fit_transform(pixels)
    assert (features.dtype, features.shape) == (np.float32, (20, 96))
    np.testing.assert_array_equal(features, expected)
    order = [3, 3, 19, 0]
    np.testing.assert_array_equal(embedder.transform(pixels[order]), features[order])


def test_what_bin_embed_made_is_read(
    embedder: Embedder, embed: Embed, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = embed(folder).run().cache.splits["test"]
    refuse_to_embed(monkeypatch)
    paths = [str(folder / name) for name in split.ids]
    np.testing.assert_array_equal(embedder.transform(paths), split.load())
    assert not Path(embedder.cache_dir, "embedder").exists()


def test_paths_pictures_and_arrays_are_the_same_images(
    embedder: Embedder, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures[0].parent)
    features = embedder.transform(pictures)
    opened = [Image.open(path) for path in pictures]
    np.testing.assert_array_equal(embedder.transform(opened), features)
    arrays = [np.asarray(picture) for picture in opened]
    refuse_to_embed(monkeypatch)  # PIL images and arrays of the same pixels are the same content
    np.testing.assert_array_equal(embedder.transform(arrays), features)
    np.testing.assert_array_equal(embedder.transform(np.stack(arrays[::2])), features[::2])
    for same in (["..//pictures/./3.png"], np.array(["3.png"]), np.array([["3.png"]], object)):
        np.testing.assert_array_equal(embedder.transform(same), features[3:4])


def test_a_picture_is_taken_as_its_file_is(embedder: Embedder, tmp_path: Path) -> None:
    lying = Image.fromarray(some_noise(1)[0].repeat(3, axis=0))
    exif = Image.Exif()
    exif[0x0112] = 6
    lying.save(tmp_path / "lying.png", exif=exif)
    clear = Image.fromarray(np.dstack([some_noise(4).transpose(1, 2, 0)]), "RGBA")
    clear.save(tmp_path / "clear.png")
    for name in ("lying.png", "clear.png"):
        np.testing.assert_array_equal(
            embedder.transform([Image.open(tmp_path / name)]), embedder.transform([tmp_path / name])
        )


def test_nothing_is_embedded_twice(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    features = embedder.transform(some_noise(12))
    refuse_to_embed(monkeypatch)
    np.testing.assert_array_equal(clone(embedder).transform(some_noise(12)[::-1]), features[::-1])
    with pytest.raises(AssertionError, match="embedded anew"):
        embedder.set_params(image_size=33).transform(some_noise(12))


def test_a_store_keeps_few_files_and_each_image_once(embedder: Embedder, run: Run) -> None:
    images = some_noise(7)
    for end in range(1, 8):
        embedder.transform(images[:end])
    caches = store(embedder)
    assert sorted(len(cache.splits["train"]) for cache in caches) == [1, 2, 4]
    assert all(cache.is_byproduct for cache in caches)
    folder = Path(embedder.cache_dir, "embedder")
    assert files(folder) >= {cache.path.name for cache in caches}
    garbage = find_garbage(folder, damaged=True, superseded=True)
    assert {each.path.suffix for each in garbage} <= {".lock"}
    status, _, err = run("cache", "verify", "--cache-dir", folder, "--no-canary")
    assert status == 0, err
    assert len({row.tobytes() for cache in caches for row in cache.splits["train"].content}) == 7


def test_other_commands_pass_over_a_store(embedder: Embedder, run: Run) -> None:
    embedder.transform(some_noise(3))
    (cache,) = store(embedder)
    status, _, err = run("fit-head", "--cache", cache.path)
    assert status == 1
    assert "has no test split" in err
    status, _, err = run("fit-head", "--cache-dir", cache.path.parent)
    assert status == 1
    assert "no cache" in err


def test_without_a_folder_nothing_is_kept(embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    features = embedder.set_params(cache_dir=None).transform(some_noise(20))
    assert not list(tmp_path.iterdir())
    np.testing.assert_array_equal(features, embedder.set_params(cache_dir="here").transform(some_noise(20)))
    precise = clone(embedder).set_params(storage="float32", cache_dir=None).transform(some_noise(20))
    assert 0 < np.abs(precise - features).max() < 1e-2
    np.testing.assert_array_equal(precise.astype(np.float16), features)


@pytest.mark.parametrize("cache_dir", ["features", None])
def test_damaged_images_are_named(
    embedder: Embedder, pictures: list[Path], monkeypatch: pytest.MonkeyPatch, cache_dir: str | None
) -> None:
    monkeypatch.chdir(pictures[0].parent)
    embedder.set_params(cache_dir=cache_dir)
    Path("4.png").write_text("no picture")
    Path("7.png").write_bytes(pictures[6].read_bytes()[:200])
    with pytest.raises(UserError, match="mend or remove them") as caught:
        embedder.transform(pictures)
    message = str(caught.value)
    assert f"{pictures[4]}: not a JPEG" in message
    assert f"{pictures[7]}: damaged" in message
    with pytest.raises(UserError, match="^8.png/none: cannot be read: .*; mend or remove it$"):
        embedder.transform([pictures[1], "8.png/none"])
    if cache_dir:
        before = files(Path("features/embedder"))
        refused = pytest.raises(UserError, match="4.png: not a JPEG")
        with refused:
            embedder.transform([pictures[4]])
        assert {name for name in files(Path("features/embedder")) if name.endswith(".h5")} <= before
        refuse_to_embed(monkeypatch)  # the whole ones are there
        assert embedder.transform([path for path in pictures if path.stem not in "47"]).shape == (8, 96)


def test_damage_in_the_store_is_never_served(embedder: Embedder) -> None:
    embedder.transform(some_noise(5))
    (cache,) = store(embedder)
    flip(cache, "train", "features", 2)
    with pytest.raises(CacheError, match=r"rows do not read back; bin/cache verify --cache-dir .*embedder names"):
        embedder.transform(some_noise(5))


def test_it_is_an_estimator(embedder: Embedder) -> None:
    assert clone(embedder).get_params() == embedder.get_params()
    assert repr(Embedder("resnet18", image_size=64)) == "Embedder(backbone='resnet18', image_size=64)"
    again = pickle.loads(pickle.dumps(embedder.fit(some_noise(2))))
    np.testing.assert_array_equal(again.transform(some_noise(2)), embedder.transform(some_noise(2)))
    assert len(pickle.dumps(embedder)) < 2000
    assert embedder.get_feature_names_out().tolist() == [f"embedder{i}" for i in range(96)]


def test_it_gives_data_frames(embedder: Embedder, pictures: list[Path]) -> None:
    pandas = pytest.importorskip("pandas")
    column = pandas.Series([str(path) for path in pictures], index=[f"row {i}" for i in range(10)])
    frame = embedder.set_output(transform="pandas").transform(column)
    assert frame.shape == (10, 96)
    assert frame.columns[7] == "embedder7"
    np.testing.assert_array_equal(frame.to_numpy(), clone(embedder).set_output(transform="default").transform(pictures))


@pytest.mark.parametrize("backend", ["threading", pytest.param("loky", marks=pytest.mark.slow)])
def test_a_search_of_two_workers_embeds_each_image_once(embedder: Embedder, backend: str) -> None:
    """In threads; processes, whose quicker twin they are, import torch each."""
    digits = load_dataset("digits").splits["train"].take(np.arange(60))
    X, y = digits.images.read(range(60)).pixels, digits.labels
    embedder.set_params(backbone="resnet18")  # whose random features tell the digits apart
    pipeline = make_pipeline(embedder, LogisticRegression(max_iter=1000))
    with parallel_config(backend=backend, n_jobs=2):
        search = GridSearchCV(pipeline, {"logisticregression__C": [0.01, 1.0]}, cv=2).fit(X, y)
    assert search.best_score_ > 0.5
    distinct = {image.tobytes() for image in X}
    assert sum(len(cache.splits["train"]) for cache in store(embedder)) == len(distinct)


@pytest.mark.parametrize(
    ("X", "told"),
    [
        ([], "got no images"),
        (some_noise(0), "got an array of uint8 of shape (0, 8, 8)"),
        ("a.png", "put 'a.png' in a list"),
        (3.5, "got float; expected paths"),
        (np.zeros((4, 8, 8)), "astype('uint8')"),
        (np.zeros((4, 64), np.uint8), "got an array of uint8 of shape (4, 64); expected"),
        (np.zeros((4, 3, 8, 8), np.uint8), "X.transpose(0, 2, 3, 1)"),
        (["a.png", 7], "image 0 is 'a.png', of type str; expected paths, PIL images"),
        ([np.zeros((8, 8))], "image 0 is an array of float64 of shape (8, 8)"),
        (np.array([["a.png", "b.png"]]), "expected one column of paths"),
    ],
)
def test_what_is_no_image_is_refused(embedder: Embedder, X: object, told: str) -> None:
    for call in (embedder.fit, embedder.transform):
        with pytest.raises(UsageError) as caught:
            call(X)
        assert told in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"precision": "auto"}, "unknown precision 'auto': expected one of fp32, bf16, fp16"),
        ({"engine": "eeger"}, "unknown engine 'eeger': did you mean eager"),
        ({"storage": "int8"}, "unknown storage 'int8'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"backbone": "resnet19"}, "unknown backbone 'resnet19'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(embedder: Embedder, settings: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        embedder.set_params(**settings).fit(some_noise(1))
    assert told in str(caught.value)
