"""Data sets: what a folder or a name holds, how splits come about, and what is said when it can't be."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from conftest import draw

from featcache.common.errors import UsageError, UserError
from featcache.sources import torchvision_sets
from featcache.sources.image_sets import ArrayImages, FileImages, load_dataset
from featcache.tables.subset import Subset

MakeFolder = Callable[..., Path]


def test_digits_come_with_a_carved_test_split() -> None:
    digits = load_dataset("digits")
    assert [len(split.ids) for split in digits.splits.values()] == [1438, 359]
    assert digits.class_names == tuple("0123456789")
    assert set(digits.splits["train"].ids).isdisjoint(digits.splits["test"].ids)
    assert "359 of its 1,797 images were carved off as test (seed 0)" in digits.notes[0]
    images = digits.splits["train"].images
    assert isinstance(images, ArrayImages)
    assert images.pixels.dtype == np.uint8
    assert images.pixels.max() == 255


def test_a_carved_test_split_hangs_on_the_seed_and_not_on_the_training_subset() -> None:
    ids = [
        load_dataset("digits", subset=Subset(seed=seed, per_class=n)).splits["test"].ids
        for seed, n in ((0, 5), (0, 50), (1, 5))
    ]
    assert ids[0] == ids[1] != ids[2]


def test_folders_of_splits(make_folder: MakeFolder) -> None:
    root = make_folder({"train": {"b": 3, "a": 2}, "val": {"a": 1, "b": 1}, "test": {"a": 2, "b": 1}})
    dataset = load_dataset(str(root))
    assert {name: len(split.ids) for name, split in dataset.splits.items()} == {"train": 5, "val": 2, "test": 3}
    assert dataset.class_names == ("a", "b")
    assert dataset.splits["train"].ids[:3] == ("train/a/000.jpg", "train/a/001.jpg", "train/b/000.jpg")
    assert dataset.splits["train"].labels.tolist() == [0, 0, 1, 1, 1]
    assert not dataset.notes


def test_val_serves_as_test_where_there_is_no_test(make_folder: MakeFolder) -> None:
    dataset = load_dataset(str(make_folder({"train": {"a": 3, "b": 3}, "valid": {"a": 2, "b": 2}})))
    assert set(dataset.splits) == {"train", "test"}
    assert dataset.splits["test"].ids[0] == "valid/a/000.jpg"
    assert dataset.notes[0] == "splits: train -> train, valid -> val"
    assert "its val split serves as test" in dataset.notes[1]
    assert dataset.selection == {"test": "val"}


def test_what_is_no_image_is_left_out_and_counted(make_folder: MakeFolder) -> None:
    root = make_folder({"": {"a": 5, "b": 5}})
    draw(root / "a" / "deeper" / "x.PNG", hue=0, seed=1)
    for name in ("a/anim.gif", "b/notes.txt", "b/other.txt", "readme.md", "a/.hidden.jpg", ".DS_Store"):
        (root / name).write_bytes(b"no image")
    dataset = load_dataset(str(root))
    assert len(dataset) == 11
    assert "a/deeper/x.PNG" in (*dataset.splits["train"].ids, *dataset.splits["test"].ids)
    assert dataset.notes[0].endswith(": 1 .gif, 1 .md, 2 .txt")
    draw(root / "beside.jpg", hue=0, seed=1)
    assert "images left out, being in no class folder: 1" in load_dataset(str(root)).notes


@pytest.fixture
def linked(make_folder: MakeFolder) -> Path:
    """A set to be linked up, and a folder of another photographer's beside it."""
    root = make_folder({"train": {"a": 3, "b": 3}, "test": {"a": 1, "b": 1}})
    make_folder({"": {"more": 2}}, name="elsewhere")
    return root


@pytest.mark.parametrize("target", ["train/a", "train/a/deep", "train/b", "train/b/deep", "train", "test/a", "", ".."])
def test_a_link_that_leads_back_into_the_set_is_not_followed(linked: Path, target: str) -> None:
    for name in "ab":
        draw(linked / "train" / name / "deep" / "x.jpg", hue=0, seed=1)
    before = load_dataset(str(linked))
    link = linked / "train" / "a" / "again"
    link.symlink_to(linked / target, target_is_directory=True)
    dataset = load_dataset(str(linked))
    assert {name: split.ids for name, split in dataset.splits.items()} == {
        name: split.ids for name, split in before.splits.items()
    }
    assert dataset.notes == (f"links not followed, as they lead back to these folders: 1 ({link})",)


def test_links_that_lead_elsewhere_are_followed_once(linked: Path) -> None:
    elsewhere = linked.parent / "elsewhere"
    (linked / "train" / "a" / "more").symlink_to(elsewhere / "more")
    (linked / "train" / "a" / "twice").symlink_to(elsewhere)
    (elsewhere / "more" / "up").symlink_to(elsewhere)
    (linked / "train" / "c").symlink_to(elsewhere.parent / "third")  # a class folder that is a link itself
    draw(elsewhere.parent / "third" / "y.jpg", hue=2, seed=1)
    dataset = load_dataset(str(linked))
    assert dataset.class_names == ("a", "b", "c")
    contents = dataset.splits["train"].images.digests()
    assert len(np.unique(contents, axis=0)) == len(contents) == 3 + 2 + 3 + 1


@pytest.mark.parametrize(
    ("links", "message"),
    [
        ({"train/c": "train/b"}, "train/b is the same folder as .*train/c, by a link: images would count twice"),
        ({"val": "test"}, "test/a is the same folder as .*val/a|val/a is the same folder as .*test/a"),
        ({"train/c": "train/b/deep"}, "train/c lies in .*train/b, by a link"),
        ({"train/c": "train"}, "train/a lies in .*train/c, by a link"),
        ({"train/a/x": "../elsewhere", "train/b/x": "../elsewhere/more"}, "hold links to one folder, .*elsewhere/more"),
        ({"train/a/x": "../elsewhere", "test/a/x": "../elsewhere"}, "train/a and .*test/a hold links to one folder"),
    ],
    ids=str,
)
def test_links_that_double_images_are_refused(linked: Path, links: dict[str, str], message: str) -> None:
    draw(linked / "train" / "b" / "deep" / "x.jpg", hue=0, seed=1)
    for link, target in links.items():
        (linked / link).symlink_to(linked / target)
    with pytest.raises(UserError, match=message):
        load_dataset(str(linked))


def test_a_folder_that_cannot_be_read_is_refused(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder({"": {"a": 5, "b": 5}})
    draw(root / "a" / "deep" / "x.jpg", hue=0, seed=1)
    scan = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match=r"a/deep: cannot be read: Permission denied; make it readable"):
        load_dataset(str(root))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"": {"only": 3}}, "one class only .'only'."),
        ({"": {"a": 3, "b": 1}}, "class 'b' has 1 image: a test split can be carved off from 2 images a class on"),
        ({"": {"a": 0, "b": 0}}, "no images found"),
        ({"train": {"a": 2}, "test": {"a": 2, "b": 2}}, "class 'b' has no training images"),
        ({"train": {"a": 2, "b": 2}, "extra": {"a": 2, "b": 2}}, "expected folders train, val, test and no other"),
    ],
    ids=["one class", "one image", "empty", "class only in test", "odd folder"],
)
def test_folders_that_make_no_data_set(make_folder: MakeFolder, counts: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_dataset(str(make_folder(counts)))


def test_names_that_are_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_dataset(str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="'cifar-10': did you mean cifar10"):
        load_dataset("cifar-10")


def test_booleans_choose_the_same_rows_of_ids_labels_and_images(make_folder: MakeFolder) -> None:
    split = load_dataset(str(make_folder({"train": {"a": 3, "b": 2}, "test": {"a": 1, "b": 1}}))).splits["train"]
    mask = split.labels == 1
    chosen, expected = split.take(mask), split.take(np.flatnonzero(mask))
    assert chosen.ids == expected.ids == split.ids[3:]
    assert chosen.labels.tolist() == [1, 1]
    assert chosen.images == expected.images == split.images.take(mask)
    with pytest.raises(IndexError, match="the split has 5 rows; asked for by booleans of shape"):
        split.take(mask[1:])


def test_files_are_read_with_their_digests_and_damages(make_folder: MakeFolder) -> None:
    root = make_folder({"": {"a": 2, "b": 2}})
    (root / "a" / "000.jpg").write_bytes(b"text")
    images = FileImages(root, ("a/000.jpg", "a/001.jpg", "b/gone.jpg"))
    read = images.read(range(3))
    np.testing.assert_array_equal(read.digests, images.digests())
    assert list(read.damaged) == [0, 2]
    assert read.pixels[1].shape == (40, 48, 3)
    assert not images.digests()[2].any()
    assert (images.digests()[1] == FileImages(root, ("a/001.jpg",)).digests()[0]).all()


def write_idx(path: Path, values: np.ndarray) -> None:
    """The format of MNIST."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}i", *values.shape)
    data = header + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def test_a_torchvision_set_in_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = {"train": rng.integers(0, 256, (30, 28, 28)), "t10k": rng.integers(0, 256, (10, 28, 28))}
    for split, values in pixels.items():
        write_idx(tmp_path / "MNIST" / "raw" / f"{split}-images-idx3-ubyte", values)
        write_idx(tmp_path / "MNIST" / "raw" / f"{split}-labels-idx1-ubyte", np.arange(len(values)) % 10)
    dataset = load_dataset("mnist", root=tmp_path)
    assert dataset.class_names[0] == "0 - zero"
    assert dataset.splits["test"].ids[-1] == "test/9"
    np.testing.assert_array_equal(dataset.splits["train"].images.read([3, 4]).pixels, pixels["train"][3:5])


def test_a_torchvision_set_of_files(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        for hue, country in enumerate(("DE", "FR")):
            for i in range(3):
                draw(tmp_path / "country211" / split / country / f"{i}.jpg", hue=hue, seed=i)
    dataset = load_dataset("country211", root=tmp_path)
    assert set(dataset.splits) == {"train", "val", "test"}
    assert dataset.class_names == ("DE", "FR")
    images = dataset.splits["val"].images
    read = images.take(np.array([4, 5])).read([1])
    assert read.pixels[0].shape == (40, 48, 3)
    np.testing.assert_array_equal(read.digests[0], images.digests()[5])


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "flowers102"])
def test_a_refused_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(UserError, match=f"{name}: cannot be read or downloaded .*no network") as caught:
        load_dataset(name, root=tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_debians_fashion_mnist(tmp_path: Path) -> None:
    folder = torchvision_sets.DEBIAN_FASHION_MNIST
    if not folder.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    dataset = load_dataset("fashion-mnist", root=tmp_path)
    assert [len(split.ids) for split in dataset.splits.values()] == [60_000, 10_000]
    assert np.bincount(dataset.splits["train"].labels).tolist() == [6_000] * 10
    assert dataset.class_names[9] == "Ankle boot"


def test_debians_format_is_read_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, 28))
    for split in ("train", "t10k"):
        write_idx(tmp_path / "deb" / f"{split}-images-idx3-ubyte.gz", pixels)
        write_idx(tmp_path / "deb" / f"{split}-labels-idx1-ubyte.gz", np.arange(20) % 10)
    monkeypatch.setattr(torchvision_sets, "DEBIAN_FASHION_MNIST", tmp_path / "deb")
    dataset = load_dataset("fashion-mnist", root=tmp_path)
    np.testing.assert_array_equal(dataset.splits["test"].images.read(range(20)).pixels, pixels)
