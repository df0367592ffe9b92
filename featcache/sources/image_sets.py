"""Load a data set by name or folder as splits of labelled images, in a fixed order and not yet decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from featcache.common.errors import UserError, one_of
from featcache.common.hashing import DIGEST_SIZE, digest
from featcache.common.user_cache import remembered_digests
from featcache.sources import decoding
from featcache.sources.decoding import DamagedImageError, Pixels, stack_digests
from featcache.tables.subset import Subset, carve, row_numbers

#: The share of a set with one split that becomes its test split.
TEST_FRACTION = 0.2


class Images(Protocol):
    """Images that are read when asked for; ``in_memory`` where that takes no decoding."""

    in_memory: ClassVar[bool]

    def __len__(self) -> int: ...

    def take(self, rows: NDArray[np.int64]) -> Images:
        """The same images, only these rows."""

    def digests(self) -> NDArray[np.uint8]:
        """(N, 16) content digests; zeros where an image can't be read."""

    def read(self, rows: Sequence[int]) -> ReadImages:
        """Decode these rows; several threads may ask at once."""


@dataclass(frozen=True)
class ReadImages:
    """Decoded images: their pixels (a black pixel where damaged), content digests, and what failed, by position."""

    pixels: Sequence[Pixels]
    digests: NDArray[np.uint8]
    damaged: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ArrayImages:
    """Images in memory: (N, H, W) or (N, H, W, 3) uint8."""

    pixels: Pixels
    in_memory: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, rows: NDArray[np.int64]) -> ArrayImages:
        return ArrayImages(self.pixels[rows])

    def digests(self) -> NDArray[np.uint8]:
        return stack_digests([decoding.pixels_digest(image) for image in self.pixels])

    def read(self, rows: Sequence[int]) -> ReadImages:
        pixels = self.pixels[np.asarray(rows)]
        return ReadImages(pixels, stack_digests([decoding.pixels_digest(image) for image in pixels]))


@dataclass(frozen=True)
class FileImages:
    """Image files below a folder, by relative path."""

    root: Path
    names: tuple[str, ...]
    in_memory: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: NDArray[np.int64]) -> FileImages:
        numbers = row_numbers(rows, len(self), of=str(self.root))
        return replace(self, names=tuple(self.names[row] for row in numbers.tolist()))

    def digests(self) -> NDArray[np.uint8]:
        return remembered_digests(self.root, self.names, self._digest)

    def _digest(self, name: str) -> bytes:
        try:
            return decoding.file_digest(self.root / name)
        except DamagedImageError:
            return bytes(DIGEST_SIZE)

    def read(self, rows: Sequence[int]) -> ReadImages:
        pixels, digests, damaged = [], [], {}
        for position, row in enumerate(rows):
            content, image = bytes(DIGEST_SIZE), np.zeros((1, 1), np.uint8)
            try:
                data = decoding.read(self.root / self.names[row])
                content = digest(data)
                image = decoding.decode(data)
            except DamagedImageError as error:
                damaged[position] = str(error)
            pixels.append(image)
            digests.append(content)
        return ReadImages(pixels, stack_digests(digests), damaged)


@dataclass(frozen=True)
class Split:
    """One split: ``ids`` (unique in the data set), ``labels`` (N,) int64, -1 where unlabelled, and the images."""

    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    images: Images

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Split:
        """Some rows, (n,) integers or (N,) booleans. Raises IndexError or TypeError for other ones."""
        rows = row_numbers(rows, len(self.ids), of="the split")
        return Split(tuple(self.ids[row] for row in rows.tolist()), self.labels[rows], self.images.take(rows))


@dataclass(frozen=True)
class ImageDataset:
    """A data set as it will be embedded.

    Attributes:
        name: short, fit for a file name.
        class_names: by label.
        splits: ``train`` and ``test``, and ``val`` where the set has one beside its test split.
        selection: how the rows were chosen from what the source holds, as JSON.
        notes: sentences for the user on what was decided.
        folder: the absolute path of a set that came from one.
    """

    name: str
    class_names: tuple[str, ...]
    splits: dict[str, Split]
    selection: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    folder: str | None = None

    def __len__(self) -> int:
        return sum(len(split.ids) for split in self.splits.values())


def load_dataset(dataset: str, *, root: Path = Path("data"), subset: Subset | None = None) -> ImageDataset:
    """Find a data set and choose its rows.

    Where the set has no test split, its validation split is the test split; where it has one split only, a stratified
    fifth of it is carved off. ``notes`` says so.

    Args:
        dataset: ``digits``, the name of a torchvision classification set, or a folder ``root/<class>/*`` or
            ``root/{train,val,test}/<class>/*``.
        root: where downloaded sets live.
        subset: which rows to keep; its seed also decides the carved test split.

    Raises:
        UsageError: the name is unknown, or the subset makes no sense for the set.
        UserError: the folder is missing or not laid out as expected, a download failed, a class is too small.
    """
    from featcache.sources import folders, torchvision_sets

    subset = subset or Subset()
    if dataset in torchvision_sets.NAMES:
        found = torchvision_sets.load(dataset, root)
    elif "/" in dataset or Path(dataset).exists():
        found = folders.load(Path(dataset))
    else:
        raise one_of("data set (nor is it a folder)", dataset, sorted(torchvision_sets.NAMES))
    return _choose_rows(_with_test_split(found, subset.seed), subset)


def _with_test_split(dataset: ImageDataset, seed: int) -> ImageDataset:
    splits = dict(dataset.splits)
    if "test" in splits:
        return dataset
    if "val" in splits:
        splits["test"] = splits.pop("val")
        note = "the set has no test split: its val split serves as test; validation is carved from train when fitting"
        return replace(dataset, splits=splits, selection={"test": "val"}, notes=(*dataset.notes, note))
    whole = splits["train"]
    counts = np.bincount(whole.labels[whole.labels >= 0], minlength=len(dataset.class_names))
    for name, count in zip(dataset.class_names, counts, strict=True):
        if count < 2:
            raise UserError(
                f"class {name!r} has {count} image: a test split can be carved off from 2 images a class on; "
                "add images or remove the class"
            )
    train, test = carve(whole.labels, fraction=TEST_FRACTION, seed=seed)
    note = (
        f"the set has one split: {len(test):,} of its {len(whole.ids):,} images were carved off as test (seed {seed})"
    )
    return replace(
        dataset,
        splits={"train": whole.take(train), "test": whole.take(test)},
        selection={"test": {"carved": TEST_FRACTION, "seed": seed}},
        notes=(*dataset.notes, note),
    )


def _choose_rows(dataset: ImageDataset, subset: Subset) -> ImageDataset:
    labels = {name: split.labels for name, split in dataset.splits.items()}
    rows, class_names, new_label = subset.choose(labels, dataset.class_names)
    splits = {}
    for name, split in dataset.splits.items():
        kept = split.take(rows[name])
        splits[name] = replace(kept, labels=new_label[kept.labels])
    selection = {**dataset.selection, **({"subset": subset.to_json()} if subset.to_json() else {})}
    return replace(dataset, splits=splits, class_names=class_names, selection=selection)
