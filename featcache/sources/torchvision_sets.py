"""Load a known data set by name: scikit-learn's digits and torchvision's classification sets."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from featcache.common.errors import UserError
from featcache.sources import decoding
from featcache.sources.decoding import Pixels, stack_digests
from featcache.sources.image_sets import ArrayImages, FileImages, ImageDataset, Images, ReadImages, Split

#: Where Debian's package dataset-fashion-mnist puts its files.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

_TRAIN_FLAG = {"train": {"train": True}, "test": {"train": False}}
_TRAIN_TEST = {"train": {"split": "train"}, "test": {"split": "test"}}
_TRAIN_VAL_TEST = {**_TRAIN_TEST, "val": {"split": "val"}}
_TRAINVAL_TEST = {"train": {"split": "trainval"}, "test": {"split": "test"}}
_TRAIN_VALID_TEST = {**_TRAIN_TEST, "val": {"split": "valid"}}
_ONE: dict[str, dict[str, Any]] = {"train": {}}
#: torchvision does not promise that two threads may read a data set at once.
_ONE_BY_ONE = threading.Lock()

#: Class in torchvision.datasets and the arguments that give each split.
TORCHVISION: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "caltech101": ("Caltech101", _ONE),
    "caltech256": ("Caltech256", _ONE),
    "cifar10": ("CIFAR10", _TRAIN_FLAG),
    "cifar100": ("CIFAR100", _TRAIN_FLAG),
    "country211": ("Country211", _TRAIN_VALID_TEST),
    "dtd": ("DTD", _TRAIN_VAL_TEST),
    "emnist": ("EMNIST", {name: {"split": "balanced", **flag} for name, flag in _TRAIN_FLAG.items()}),
    "eurosat": ("EuroSAT", _ONE),
    "fashion-mnist": ("FashionMNIST", _TRAIN_FLAG),
    "fgvc-aircraft": ("FGVCAircraft", _TRAIN_VAL_TEST),
    "flowers102": ("Flowers102", _TRAIN_VAL_TEST),
    "food101": ("Food101", _TRAIN_TEST),
    "gtsrb": ("GTSRB", _TRAIN_TEST),
    "imagenette": ("Imagenette", {"train": {"split": "train"}, "val": {"split": "val"}}),
    "kmnist": ("KMNIST", _TRAIN_FLAG),
    "mnist": ("MNIST", _TRAIN_FLAG),
    "oxford-iiit-pet": ("OxfordIIITPet", _TRAINVAL_TEST),
    "pcam": ("PCAM", _TRAIN_VAL_TEST),
    "rendered-sst2": ("RenderedSST2", _TRAIN_VAL_TEST),
    "semeion": ("SEMEION", _ONE),
    "stl10": ("STL10", _TRAIN_TEST),
    "sun397": ("SUN397", _ONE),
    "svhn": ("SVHN", _TRAIN_TEST),
    "usps": ("USPS", _TRAIN_FLAG),
}
NAMES = frozenset({"digits", *TORCHVISION})


def load(name: str, root: Path) -> ImageDataset:
    """One of ``NAMES``; downloaded below ``root`` where it is not there yet.

    Raises:
        UserError: the download failed.
    """
    if name == "digits":
        return _digits()
    if name == "fashion-mnist" and DEBIAN_FASHION_MNIST.is_dir() and not (root / "FashionMNIST").is_dir():
        return _debian_fashion_mnist(DEBIAN_FASHION_MNIST)
    return _torchvision(name, root)


def _digits() -> ImageDataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    ids = tuple(str(i) for i in range(len(pixels)))
    split = Split(ids, bunch.target.astype(np.int64), ArrayImages(pixels))
    return ImageDataset("digits", tuple(str(c) for c in bunch.target_names), {"train": split})


def _debian_fashion_mnist(folder: Path) -> ImageDataset:
    splits = {}
    for split, stem in (("train", "train"), ("test", "t10k")):
        pixels = _idx(folder / f"{stem}-images-idx3-ubyte.gz")
        labels = _idx(folder / f"{stem}-labels-idx1-ubyte.gz")
        splits[split] = Split(_numbered(split, len(labels)), labels.astype(np.int64), ArrayImages(pixels))
    return ImageDataset("fashion-mnist", FASHION_CLASSES, splits, notes=(f"read from {folder}",))


def _idx(path: Path) -> Pixels:
    """An array in the IDX format of MNIST (http://yann.lecun.com/exdb/mnist), gzipped."""
    data = gzip.decompress(path.read_bytes())
    n_dimensions = data[3]
    shape = np.frombuffer(data, ">i4", n_dimensions, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * n_dimensions).reshape(shape)


def _numbered(split: str, count: int) -> tuple[str, ...]:
    return tuple(f"{split}/{i}" for i in range(count))


def _torchvision(name: str, root: Path) -> ImageDataset:
    class_name, arguments = TORCHVISION[name]
    sets = {split: _open(name, class_name, root, given) for split, given in arguments.items()}
    splits = {}
    for split, source in sets.items():
        found, labels = _in_memory(source) or _files(source) or _one_by_one(source)
        splits[split] = Split(_numbered(split, len(labels)), labels, found)
    n_classes = 1 + max(int(split.labels.max()) for split in splits.values())
    named = getattr(sets["train"], "classes", None) or getattr(sets["train"], "categories", None)
    names = (
        [c if isinstance(c, str) else str(c[0]) for c in named]
        if named and len(named) == n_classes
        else [str(i) for i in range(n_classes)]
    )
    return ImageDataset(name, tuple(names), splits)


def _open(name: str, class_name: str, root: Path, given: dict[str, Any]) -> Any:
    import torchvision

    constructor = getattr(torchvision.datasets, class_name)
    try:
        try:
            return constructor(root, download=False, **given)
        except RuntimeError:  # it is not there yet
            return constructor(root, download=True, **given)
    except (OSError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{name}: cannot be read or downloaded ({reason}); put torchvision's {class_name} files below {root}, "
            "name another --root, or take --dataset digits, which needs no download"
        ) from error


def _in_memory(source: Any) -> tuple[Images, NDArray[np.int64]] | None:
    """The images and labels of a set that keeps them in memory, or None for one that reads files."""
    labels = np.asarray(getattr(source, "targets", getattr(source, "labels", ())), dtype=np.int64)
    pixels = np.asarray(getattr(source, "data", ()))
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or len(pixels) != len(labels):
        return None
    if pixels.ndim == 4 and pixels.shape[1] == 3:
        pixels = pixels.transpose(0, 2, 3, 1)
    return ArrayImages(pixels), labels


def _files(source: Any) -> tuple[Images, NDArray[np.int64]] | None:
    """The files and labels of a set that lists them, under one of the names that torchvision's sets use, or None."""
    samples = getattr(source, "samples", None) or getattr(source, "_samples", None)
    if not samples:
        paths = getattr(source, "_image_files", None) or getattr(source, "_images", None) or []
        labels = getattr(source, "_labels", None) or []
        samples = list(zip(paths, labels, strict=True)) if len(paths) == len(labels) else []
    if not samples:
        return None
    names = tuple(str(Path(path).absolute()) for path, _ in samples)
    return FileImages(Path("/"), names), np.array([int(label) for _, label in samples], dtype=np.int64)


def _one_by_one(source: Any) -> tuple[Images, NDArray[np.int64]]:
    """The images and labels of a set that offers no list of either: each is decoded once to learn its digest."""
    digests, labels = [], []
    for i in range(len(source)):
        try:
            image, label = source[i]
            digests.append(decoding.pixels_digest(decoding.eight_bits(image)))
        except (OSError, decoding.DamagedImageError) as error:
            name = type(source).__name__
            raise UserError(f"image {i} of {name} cannot be read ({error}); download the set anew") from error
        labels.append(int(label))
    return IndexedImages(source, np.arange(len(labels)), stack_digests(digests)), np.array(labels, dtype=np.int64)


@dataclass(frozen=True)
class IndexedImages:
    """The images of a torchvision data set that reads them from its own files; the digests are of the pixels."""

    source: Any
    rows: NDArray[np.int64]
    content: NDArray[np.uint8]
    in_memory: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: NDArray[np.int64]) -> IndexedImages:
        return replace(self, rows=self.rows[rows])

    def digests(self) -> NDArray[np.uint8]:
        return self.content[self.rows]

    def read(self, rows: Sequence[int]) -> ReadImages:
        with _ONE_BY_ONE:
            pixels = [decoding.eight_bits(self.source[int(self.rows[row])][0]) for row in rows]
        return ReadImages(pixels, stack_digests([decoding.pixels_digest(image) for image in pixels]))
