"""List the images of a folder ``root/<class>/*`` or ``root/{train,val,test}/<class>/*`` by split and class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np

from featcache.common.errors import UserError
from featcache.sources.decoding import SUFFIXES
from featcache.sources.image_sets import FileImages, ImageDataset, Split
from featcache.sources.split_folders import SPLIT_WORDS, folders_in, split_folders

_MAX_NAMED = 3
_TWICE = "images would count twice; remove one of the two"


@dataclass
class LeftOut:
    """What folders hold besides the images that are listed.

    Attributes:
        suffixes: files that are no images by name, by their ending.
        stray: images that lie beside the class folders.
        links: links that lead to a folder that is listed anyway.
    """

    suffixes: Counter[str] = field(default_factory=Counter)
    stray: int = 0
    links: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """Sentences for the user; none if nothing was left out."""
        notes = []
        if self.stray:
            notes.append(f"images left out, being in no class folder: {self.stray:,}")
        if self.suffixes:
            kinds = (f"{count:,} {suffix or 'without an ending'}" for suffix, count in sorted(self.suffixes.items()))
            notes.append(f"files left out, being no JPEG, PNG, WebP, BMP or TIFF: {', '.join(kinds)}")
        if self.links:
            named = ", ".join(self.links[:_MAX_NAMED]) + (", …" if len(self.links) > _MAX_NAMED else "")
            notes.append(f"links not followed, as they lead back to these folders: {len(self.links):,} ({named})")
        return notes


def load(root: Path) -> ImageDataset:
    """List a folder's images; nothing is opened.

    Hidden files are passed over; files that are no JPEG, PNG, WebP, BMP or TIFF by name are left out and counted in the
    notes. Folders below a class belong to it. Links are followed unless they lead back into the data set.

    Raises:
        UserError: no such folder, no images, fewer than two classes, a class without training images, folders that are
            named like splits and are none for certain, or links by which images would count twice.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected one that holds <class>/* or train/<class>/*, val/<class>/*")
    left_out = LeftOut()
    folders, notes = split_folders(root)
    class_folders = {split: _class_folders(folder, left_out) for split, folder in folders.items()}
    lister = ImageLister([path for paths in class_folders.values() for path in paths], above=[root, *folders.values()])
    lister.refuse_overlap()
    files = {
        split: {path.name: [_id(image.relative_to(root)) for image in lister.images(path, left_out)] for path in paths}
        for split, paths in class_folders.items()
    }
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
    if folders == {"train": root}:
        notes += _splits_in_classes(splits["train"].ids)
    notes += left_out.notes()
    return ImageDataset(root.resolve().name, class_names, splits, notes=tuple(notes), folder=str(root.resolve()))


def _class_folders(folder: Path, left_out: LeftOut) -> list[Path]:
    """The class folders of a split; images and other files beside them are left out."""
    classes = folders_in(folder)
    names = {path.name for path in classes}
    for entry in folder.iterdir():
        if entry.name.startswith(".") or entry.name in names:
            continue
        if entry.suffix.lower() in SUFFIXES:
            left_out.stray += 1
        else:
            left_out.suffixes[entry.suffix.lower()] += 1
    return classes


def _splits_in_classes(ids: Iterable[str]) -> list[str]:
    """A note on class folders that hold folders of splits, ``<class>/train/*``, which are read as one."""
    inner = {parts[1] for parts in (name.split("/", 2) for name in ids) if len(parts) > 2}
    like_splits = sorted(name for name in inner if name.lower() in SPLIT_WORDS)
    if len({SPLIT_WORDS[name.lower()] for name in like_splits}) < 2:
        return []
    named = ", ".join(like_splits)
    return [
        f"folders in class folders ({named}) count as parts of their class; as splits they would hold class folders"
    ]


class ImageLister:
    """Lists the images of several folders, each folder once, whatever links lead to it.

    Args:
        folders: those that will be listed. A link to one of them, or to a folder in or above one, is not followed.
        above: more folders that a link must not lead to, nor to one above them.
    """

    def __init__(self, folders: Iterable[Path], above: Iterable[Path] = ()) -> None:
        # real paths as strings: pathlib doubles the time that a set of many folders takes
        self._real = {folder: os.path.realpath(folder) for folder in folders}
        self._places: dict[str, list[Path]] = {}
        for folder, real in self._real.items():
            self._places.setdefault(real, []).append(folder)
        upper = [os.path.realpath(folder) for folder in above]
        self._above = set(upper)
        for real in (*self._places, *upper):
            for parent in Path(real).parents:
                if str(parent) in self._above:
                    break  # and what is above it, too
                self._above.add(str(parent))
        self._listed: dict[str, Path] = {}

    def refuse_overlap(self) -> None:
        """Raise UserError if links make a folder the same as another one, or a part of it."""
        for real, (folder, *same) in self._places.items():
            if same:
                raise UserError(f"{folder} is the same folder as {same[0]}, by a link: {_TWICE}")
            if real in self._above:
                for inner, (other, *_) in self._places.items():
                    if inner.startswith(f"{real}/"):
                        raise UserError(f"{other} lies in {folder}, by a link: {_TWICE}")

    def images(self, folder: Path, left_out: LeftOut) -> Iterator[Path]:
        """The image files in a folder and below it, by their names alone, sorted within each folder.

        Hidden ones are passed over, others are counted in ``left_out``.

        Raises:
            UserError: a folder can't be read, or links lead from this folder and from one listed before to the same.
        """
        reals = {os.fspath(folder): self._real[folder]}
        for where, inner, names in os.walk(folder, onerror=_refuse, followlinks=True):
            real = reals.pop(where)
            if real in self._listed:
                if (before := self._listed[real]) != folder:
                    raise UserError(f"{before} and {folder} hold links to one folder, {real}: {_TWICE}")
                left_out.links.append(where)
                inner.clear()
                continue
            self._listed[real] = folder
            followed = self._followed(where, real, inner, left_out)
            inner[:] = sorted(followed)
            reals |= {os.path.join(where, name): path for name, path in followed.items()}  # noqa: PTH118  as os.walk does
            for name in sorted(names):
                path = Path(where, name)
                if name.startswith("."):
                    continue
                if path.suffix.lower() not in SUFFIXES:
                    left_out.suffixes[path.suffix.lower()] += 1
                    continue
                yield path

    def _followed(self, where: str, real: str, inner: Iterable[str], left_out: LeftOut) -> dict[str, str]:
        """The folders to go into next, by name, with their real paths."""
        followed = {}
        for name in inner:
            if name.startswith("."):
                continue
            path = Path(where, name)
            target = os.path.realpath(path) if path.is_symlink() else os.path.join(real, name)  # noqa: PTH118
            if path.is_symlink() and self._leads_back(target):
                left_out.links.append(str(path))
                continue
            followed[name] = target
        return followed

    def _leads_back(self, real: str) -> bool:
        return real in self._above or any(str(path) in self._places for path in (real, *Path(real).parents))


def _refuse(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename}: cannot be read: {error.strerror}; make it readable, or remove it") from error


def _id(path: Path) -> str:
    name = path.as_posix()
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{name!r}: the file's name is not valid UTF-8, and ids are; rename it") from error
    return name
