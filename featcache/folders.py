"""A folder of images in, its classes and splits out: ``root/<class>/*`` or ``root/{train,val,test}/<class>/*``."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from featcache.datasets import FileImages, ImageDataset, Split
from featcache.errors import UserError
from featcache.images import SUFFIXES

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


#: Counts images that lie beside the class folders.
_STRAY = "stray"


def load(root: Path) -> ImageDataset:
    """List a folder's images; nothing is opened.

    Hidden files are passed over; files that are no JPEG, PNG, WebP, BMP or TIFF by name are left out and counted in the
    notes. Folders below a class belong to it. Links are followed, each folder once.

    Raises:
        UserError: no such folder, no images, fewer than two classes, a class without training images, or folders that
            are splits and others that are not.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected one that holds <class>/* or train/<class>/*, val/<class>/*")
    left_out: Counter[str] = Counter()
    files = {split: _classes(root, folder, left_out) for split, folder in _splits(root).items()}
    class_names = tuple(sorted({name for classes in files.values() for name in classes}))
    total = sum(len(names) for classes in files.values() for names in classes.values())
    if total == 0:
        raise UserError(
            f"{root}: no images found; expected JPEG, PNG, WebP, BMP or TIFF files in a folder for each class"
        )
    if len(class_names) < 2:
        raise UserError(f"{root}: one class only ({class_names[0]!r}); a classifier needs two or more class folders")
    for name in class_names:
        if not files["train"].get(name):
            raise UserError(f"{root}: class {name!r} has no training images; add some, or remove its folders")
    splits = {}
    for split, classes in files.items():
        ids = tuple(path for name in class_names for path in classes.get(name, ()))
        labels = np.repeat(np.arange(len(class_names)), [len(classes.get(name, ())) for name in class_names])
        splits[split] = Split(ids, labels.astype(np.int64), FileImages(root, ids))
    notes = []
    if stray := left_out.pop(_STRAY, 0):
        notes.append(f"images left out, being in no class folder: {stray}")
    if left_out:
        kinds = ", ".join(f"{count} {suffix or 'without an ending'}" for suffix, count in sorted(left_out.items()))
        notes.append(f"files left out, being no JPEG, PNG, WebP, BMP or TIFF: {kinds}")
    return ImageDataset(root.resolve().name, class_names, splits, notes=tuple(notes), folder=str(root.resolve()))


def _splits(root: Path) -> dict[str, Path]:
    """The folder of each split, or the root itself as the one split."""
    folders = [entry for entry in sorted(root.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
    named = [(SPLIT_NAMES[folder.name.lower()], folder) for folder in folders if folder.name.lower() in SPLIT_NAMES]
    if "train" not in dict(named):
        return {"train": root}
    others = [folder.name for folder in folders if folder.name.lower() not in SPLIT_NAMES]
    if others or len(dict(named)) < len(named):
        found = ", ".join(folder.name for folder in folders)
        raise UserError(f"{root}: expected folders train, val, test and no other, found {found}; move the others away")
    return {split: dict(named)[split] for split in ("train", "val", "test") if split in dict(named)}


def _classes(root: Path, folder: Path, left_out: Counter[str]) -> dict[str, list[str]]:
    """The image files of each class folder, as sorted paths relative to the root."""
    classes: dict[str, list[str]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            classes[entry.name] = _images(root, entry, left_out)
        else:
            left_out[_STRAY if entry.suffix.lower() in SUFFIXES else entry.suffix.lower()] += 1
    return classes


def _images(root: Path, folder: Path, left_out: Counter[str]) -> list[str]:
    return [_id(path.relative_to(root)) for path in image_files(folder, left_out)]


def image_files(folder: Path, left_out: Counter[str]) -> Iterator[Path]:
    """The image files in a folder and below it, by their names alone, sorted within each folder.

    Hidden ones are passed over, others are counted in ``left_out`` by their ending. Links are followed, each folder
    once.
    """
    seen = set()
    for where, inner, names in os.walk(folder, followlinks=True):
        if os.path.realpath(where) in seen:  # a link that leads back
            inner.clear()
            continue
        seen.add(os.path.realpath(where))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(names):
            path = Path(where, name)
            if name.startswith("."):
                continue
            if path.suffix.lower() not in SUFFIXES:
                left_out[path.suffix.lower()] += 1
                continue
            yield path


def _id(path: Path) -> str:
    name = path.as_posix()
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{name!r}: the file's name is not valid UTF-8, and ids are; rename it") from error
    return name
