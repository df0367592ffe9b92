"""Decide which folders of a data set are its splits, from the names of all of them and from what they hold."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from featcache.common.errors import UserError
from featcache.sources.decoding import SUFFIXES

#: The split that a word in a folder's name stands for; "" where it may be one or another.
SPLIT_WORDS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
    "eval": "", "evaluation": "", "holdout": "", "trainval": "",
}  # fmt: skip

#: Words that say nothing more: ``training_set``, ``train_images``.
_FILLERS = frozenset({"set", "split", "data", "dataset", "images", "imgs"})
_GLUED = re.compile(rf"({'|'.join(SPLIT_WORDS)})(set|data|images)")
_MAX_NAMED = 5

#: The split, and the words beside the split's and the fillers.
_Reading = tuple[str, tuple[str, ...]]


def split_folders(root: Path) -> tuple[dict[str, Path], list[str]]:
    """Find the folder of each split, or the root itself as the one split of a set without.

    A name is like a split's if it has a word of ``SPLIT_WORDS`` and nothing beside it but fillers, or the same as a
    folder of another split has (``seg_train``, ``seg_test``), or if all folders here have such words. Such folders are
    splits if all folders are, each split is there at most once, train is, and each holds class folders, if need be
    inside one more folder of its own name. One such name beside others is a class if that folder holds images itself
    (``car``, ``bus``, ``train``).

    Returns:
        The folders by split, in the order train, val, test; notes on what was taken for what.

    Raises:
        UserError: names like splits that are none for certain.
    """
    folders = folders_in(root)
    names = [folder.name for folder in folders]
    readings = _like_splits(names)
    if not readings:
        return {"train": root}, []
    others = [name for name in names if name not in readings]
    if others and len(readings) == 1 and _holds_images_alone(root / next(iter(readings))):
        return {"train": root}, [f"{next(iter(readings))} counts as a class and not as a split: it holds images itself"]
    splits = {split: name for name, (split, _) in readings.items()}
    inner = {name: _class_folders_of(root / name) for name in readings}
    if reason := _doubt(readings, others, [name for name, folder in inner.items() if folder is None]):
        example = splits.get("train") or splits.get("val") or next(iter(readings))
        target = inner[example] or root / example
        raise UserError(
            f"{root}: {_few(list(readings))} {_is(readings)} named like splits, but {reason}; expected folders train, "
            "val, test and no other, with a folder for each class in each; rename them, or embed links that have such "
            f"names: mkdir links; ln -s {shlex.quote(str(target.absolute()))} links/train"
        )
    found = {split: folder for split in ("train", "val", "test") if (folder := inner.get(splits.get(split, "")))}
    told = {split: folder.relative_to(root).as_posix() for split, folder in found.items()}
    if all(split == name for split, name in told.items()):
        return found, []
    return found, ["splits: " + ", ".join(f"{name} -> {split}" for split, name in told.items())]


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, and links to folders, by name, without hidden ones."""
    with os.scandir(folder) as entries:
        found = [folder / e.name for e in entries if e.is_symlink() or e.is_dir(follow_symlinks=False)]
    return sorted(path for path in found if not path.name.startswith(".") and path.is_dir())


def _like_splits(names: Sequence[str]) -> dict[str, _Reading]:
    """The names that are like those of splits among all names of a folder."""
    readings = {name: reading for name in names if (reading := _read(name))}
    all_are = len(readings) == len(names) and len({split for split, _ in readings.values()}) > 1
    splits_beside: dict[tuple[str, ...], set[str]] = {}
    for split, rest in readings.values():
        splits_beside.setdefault(rest, set()).add(split)
    return {name: (split, rest) for name, (split, rest) in readings.items()
            if not rest or all_are or len(splits_beside[rest]) > 1}  # fmt: skip


def _read(name: str) -> _Reading | None:
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower()
    words = re.findall(r"\d+|[^\W\d_]+", _GLUED.sub(r"\1 \2", spaced))
    splits = [SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS]
    if not splits:
        return None
    rest = tuple(word for word in words if word not in SPLIT_WORDS and word not in _FILLERS)
    return splits[0] if len(splits) == 1 else "", rest


def _doubt(readings: Mapping[str, _Reading], others: Sequence[str], without_classes: Sequence[str]) -> str | None:
    """Why folders named like splits can't be taken for them."""
    if others:
        return f"{_few(others)} {_is(others)} not"
    by_split: dict[str, list[str]] = {}
    for name, (split, _) in readings.items():
        by_split.setdefault(split, []).append(name)
    if "" in by_split:
        return f"{by_split[''][0]} may be one split or another"
    for split, names in by_split.items():
        if len(names) > 1:
            return f"{_few(names)} would all be {split}"
    if "train" not in by_split:
        return "none is one to train on"
    if len({rest for _, rest in readings.values()}) > 1:
        return "their names differ in more than the split"
    if without_classes:
        return f"{_few(without_classes)} {'hold' if len(without_classes) > 1 else 'holds'} no class folders"
    return None


def _class_folders_of(folder: Path) -> Path | None:
    """The folder that holds a split's class folders: it, or the one folder of the same name in it; None without any."""
    inner = folders_in(folder)
    if len(inner) == 1 and inner[0].name == folder.name and folders_in(inner[0]):
        return inner[0]
    return folder if inner else None


def _holds_images_alone(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        has_images = any(Path(entry.name).suffix.lower() in SUFFIXES for entry in entries)
    return has_images and not folders_in(folder)


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED:,} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


def _is(names: Sequence[str] | Mapping[str, _Reading]) -> str:
    return "are" if len(names) > 1 else "is"
