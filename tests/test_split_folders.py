"""Which folders are splits and which are classes, by the names of all of them and by what they hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from featcache.common.errors import UserError
from featcache.sources.image_sets import load_dataset

CLASSES = ("cat", "dog")


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def nested(root: Path, *splits: str) -> Path:
    """Two classes of two images each in every split."""
    return touch(root, *(f"{split}/{name}/{i}.jpg" for split in splits for name in CLASSES for i in range(2)))


def flat(root: Path, *names: str) -> Path:
    """Two images in each folder itself."""
    return touch(root, *(f"{name}/{i}.jpg" for name in names for i in range(2)))


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("training_set", "validation_set", "test_set"),
        ("train_set", "val_set", "testing"),
        ("TRAIN", "Valid", "Test"),
        ("trainset", "devset", "testset"),
        ("train_images", "dev", "test"),
        ("TrainingData", "val", "testImages"),
        ("seg_train", "seg_val", "seg_test"),
        ("asl_alphabet_train", "asl_alphabet_val", "asl_alphabet_test"),
        ("train2017", "val2017", "test2017"),
    ],
)
def test_names_of_splits_are_recognised_and_told(tmp_path: Path, train: str, val: str, test: str) -> None:
    dataset = load_dataset(str(nested(tmp_path, train, val, test)))
    assert dataset.class_names == CLASSES
    assert {split: part.ids[0] for split, part in dataset.splits.items()} == {
        "train": f"{train}/cat/0.jpg",
        "val": f"{val}/cat/0.jpg",
        "test": f"{test}/cat/0.jpg",
    }
    assert dataset.notes == (f"splits: {train} -> train, {val} -> val, {test} -> test",)


def test_plain_names_of_splits_need_no_note(tmp_path: Path) -> None:
    dataset = load_dataset(str(nested(tmp_path, "train", "val", "test")))
    assert (list(dataset.splits), dataset.notes) == (["train", "val", "test"], ())


def test_a_folder_of_the_same_name_around_the_classes_is_passed_through(tmp_path: Path) -> None:
    dataset = load_dataset(str(nested(tmp_path, "seg_train/seg_train", "seg_test/seg_test")))
    assert dataset.class_names == CLASSES
    assert dataset.splits["test"].ids[0] == "seg_test/seg_test/cat/0.jpg"
    assert dataset.notes == ("splits: seg_train/seg_train -> train, seg_test/seg_test -> test",)


@pytest.mark.parametrize(
    "names",
    [
        ("bus", "car", "train"),
        ("bus", "train"),
        ("invalid", "valid"),
        ("match", "training"),
        ("test_strip", "test_tube"),
        ("bus_station", "train_station"),
        ("beaker", "dev_board", "test_tube"),
        ("test1", "test2", "test3"),
        ("contest", "trained", "trains"),
    ],
    ids=" ".join,
)
def test_classes_with_such_words_stay_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    dataset = load_dataset(str(flat(tmp_path, *names)))
    assert dataset.class_names == names
    for name in ("train", "training", "valid"):
        assert any(note.startswith(f"{name} counts as a class") for note in dataset.notes) == (name in names)


@pytest.mark.parametrize(
    ("with_classes", "without", "reason"),
    [
        (["val", "test"], [], "test, val are named like splits, but none is one to train on"),
        (["seg_train", "seg_test"], ["seg_pred"], "seg_test, seg_train are named like splits, but seg_pred is not"),
        (["training_set", "test_set"], ["single_prediction"], "but single_prediction is not"),
        (["train", "test"], ["extra"], "but extra is not"),
        (["train"], ["bus", "car"], "train is named like splits, but bus, car are not"),
        (["train", "training"], [], "train, training would all be train"),
        (["train", "Training", "test"], [], "Training, train would all be train"),
        (["training", "evaluation", "validation"], [], "evaluation may be one split or another"),
        (["train_val", "test"], [], "train_val may be one split or another"),
        (["seg_train", "test"], [], "their names differ in more than the split"),
        (["train"], ["test"], "test holds no class folders"),
        ([], ["train", "test"], "test, train hold no class folders"),
        ([], ["val", "test"], "none is one to train on"),
        ([], ["test", "train", "sample"], "but sample is not"),
        ([], ["trainA", "trainB", "testA", "testB"], "testA, testB would all be test"),
        ([], ["train_cat", "train_dog", "test_cat", "test_dog"], "would all be test"),
    ],
    ids=str,
)
def test_what_is_named_like_splits_and_is_not_for_certain_is_refused(
    tmp_path: Path, with_classes: list[str], without: list[str], reason: str
) -> None:
    flat(nested(tmp_path, *with_classes), *without)
    with pytest.raises(UserError) as caught:
        load_dataset(str(tmp_path))
    message = str(caught.value)
    assert reason in message
    assert "expected folders train, val, test and no other" in message
    assert f"mkdir links; ln -s {tmp_path}/" in message
    assert "\n" not in message


def test_the_links_that_the_refusal_shows_make_a_data_set(tmp_path: Path) -> None:
    root = flat(nested(tmp_path / "data", "seg_train/seg_train", "seg_test/seg_test"), "seg_pred")
    with pytest.raises(UserError, match=f"ln -s {root}/seg_train/seg_train links/train$"):
        load_dataset(str(root))
    links = tmp_path / "links"
    links.mkdir()
    for split in ("train", "test"):
        (links / split).symlink_to(root / f"seg_{split}" / f"seg_{split}")
    dataset = load_dataset(str(links))
    assert dataset.class_names == CLASSES
    assert dataset.splits["test"].ids == tuple(f"test/{name}/{i}.jpg" for name in CLASSES for i in range(2))


def test_splits_inside_class_folders_are_told(tmp_path: Path) -> None:
    dataset = load_dataset(str(flat(tmp_path, "cat/train", "cat/test", "dog/train", "dog/2020")))
    assert dataset.class_names == CLASSES
    assert dataset.notes[0].startswith("folders in class folders (test, train) count as parts of their class")
