"""A cache file in, its features, labels and ids out: checked, read-only, and never only half of them.

Needs numpy and h5py alone. Data sets are mapped into memory from where they lie in the file; every block that is read
is compared with its checksum first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache import layout
from featcache.errors import CacheError

Array = NDArray[Any]


@dataclass(frozen=True)
class Stored:
    """Where a data set lies in the file."""

    path: Path
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def map(self) -> Array:
        return np.memmap(self.path, dtype=self.dtype, mode="r", offset=self.offset, shape=self.shape)


class CachedSplit:
    """One split of a cache.

    Attributes:
        name: ``train``, ``val`` or ``test``.
        features: (N, D) or (N, C, H, W) float16 or float32, mapped, not checked; ``load`` checks.
        labels: (N,) int64, -1 where unlabelled.
        ids: (N,) relative paths or indices, unique in the cache.
        content: (N, 16) uint8 digests of the source bytes.
        status: (N,) uint8, 0 where the row has features.
        errors: by id, why a row has none (the first 1,024 of them).
    """

    def __init__(self, name: str, stored: Mapping[str, Stored], block_rows: int) -> None:
        self.name = name
        self.stored = stored
        self.block_rows = block_rows
        self.checksums = stored["checksums"].map()

    def __len__(self) -> int:
        return self.stored["labels"].shape[0]

    @property
    def features(self) -> Array:
        return self.stored["features"].map()

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        return self._checked("labels")

    @cached_property
    def ids(self) -> tuple[str, ...]:
        try:
            return tuple(name.decode() for name in self._checked("ids").tolist())
        except UnicodeDecodeError as error:
            raise CacheError(f"{self._path}: /{self.name}/ids are not UTF-8") from error

    @cached_property
    def content(self) -> NDArray[np.uint8]:
        return self._checked("content")

    @cached_property
    def status(self) -> NDArray[np.uint8]:
        return self._checked("status")

    @cached_property
    def errors(self) -> dict[str, str]:
        records = self.stored["errors"].map()
        return {r["id"].decode(): r["message"].decode(errors="ignore") for r in records if r["id"]}

    def usable(self) -> NDArray[np.int64]:
        """Indices of the rows that have features and a label."""
        return np.flatnonzero((self.status == layout.OK) & (self.labels >= 0))

    def load(self, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Features of some rows, checked.

        Args:
            rows: ascending indices; None takes all rows.

        Returns:
            (len(rows), …) float32 in memory.

        Raises:
            CacheError: a block that holds one of the rows does not match its checksum.
        """
        rows = np.arange(len(self)) if rows is None else rows
        loaded = np.empty((len(rows), *self.stored["features"].shape[1:]), dtype=np.float32)
        bounds = np.searchsorted(rows, np.arange(0, len(self) + self.block_rows, self.block_rows))
        for start, values in self._blocks("features", set((rows // self.block_rows).tolist())):
            first, last = bounds[start // self.block_rows : start // self.block_rows + 2]
            loaded[first:last] = values[rows[first:last] - start]
        return loaded

    @property
    def _path(self) -> Path:
        return self.stored["labels"].path

    def _checked(self, data_set: str) -> Array:
        return np.concatenate([values for _, values in self._blocks(data_set)])

    def _blocks(self, data_set: str, wanted: set[int] | None = None) -> Iterator[tuple[int, Array]]:
        """The first row and the values of each block, each checked before it is handed out."""
        mapped = self.stored[data_set].map()
        for block, (start, stop) in enumerate(layout.blocks(len(self), self.block_rows)):
            if wanted is not None and block not in wanted:
                continue
            values = mapped[start:stop]
            if layout.digest(values) != self.checksums[block][data_set].tobytes():
                where = f"/{self.name}/{data_set}, rows {start} to {stop - 1}"
                raise CacheError(f"{self._path}: {where}, do not match their checksum; delete the file and embed again")
            yield start, values


@dataclass(frozen=True)
class Cache:
    """A sealed cache file.

    Attributes:
        path: of the file.
        encoder: how images became features (backbone, weights, preprocessing, cut, precision, engine, storage, views).
        encoder_fingerprint: digest of ``encoder``.
        class_names: by label.
        provenance: where the rows came from and what building cost (see FORMAT.md).
        splits: by name.
    """

    path: Path
    encoder: dict[str, Any]
    encoder_fingerprint: str
    class_names: tuple[str, ...]
    provenance: dict[str, Any]
    splits: dict[str, CachedSplit]

    @classmethod
    def open(cls, path: str | Path) -> Cache:
        """Open a cache and check everything but the blocks of rows, which are checked when read.

        Raises:
            CacheError: no such file, or not a whole and sealed cache of this format version.
        """
        path = Path(path)
        if not path.is_file():
            raise CacheError(f"{path}: no such cache; bin/embed makes one")
        try:
            return _open(path)
        except CacheError:
            raise
        except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise CacheError(f"{path}: cut off, damaged, or no feature cache ({reason}); embed again") from error

    @property
    def fingerprint(self) -> str:
        """Of the encoder and the rows together; its first 8 digits are in the file's name."""
        return str(self.provenance["fingerprint"])

    @property
    def dataset(self) -> str:
        """The name of the data set."""
        return str(self.provenance["source"]["dataset"])

    @property
    def holds_vectors(self) -> bool:
        """Whether a row's features are one vector, as heads need, and not a map."""
        return len(self.splits["train"].stored["features"].shape) == 2

    def told(self) -> dict[str, Any]:
        """What a cache can be asked for by: ``dataset``, ``folder`` (of a set that came from one), and the encoder."""
        return {"dataset": self.dataset, "folder": self.provenance["source"].get("folder"), **self.encoder}

    def require(self, **expected: Any) -> None:
        """Refuse the cache unless it is what the caller expects.

        Args:
            expected: values for fields of ``told``; None asks for nothing.

        Raises:
            CacheError: names every field that differs, with both values.
        """
        actual = self.told()
        differences = [
            f"{field} is {_short(actual[field])}, not {_short(value)}"
            for field, value in expected.items()
            if value is not None and actual[field] != value
        ]
        if differences:
            raise CacheError(f"{self.path} is another cache than asked for: {'; '.join(differences)}")


def find_caches(folder: Path) -> list[Cache]:
    """The caches of a folder, newest first by the time that they record; files that are none are passed over."""
    found = []
    for path in sorted(folder.glob("[!.]*.h5")):
        try:
            found.append(Cache.open(path))
        except CacheError:
            continue
    return sorted(found, key=lambda cache: str(cache.provenance["created"]), reverse=True)


def _short(value: Any) -> str:
    return value if isinstance(value, str) else layout.canonical_json(value)  # None becomes null


def _open(path: Path) -> Cache:
    import h5py

    with h5py.File(path, "r", locking=False) as file:
        if file.attrs.get("format") != layout.FORMAT:
            raise CacheError(f"{path}: an HDF5 file, but no feature cache; bin/embed makes one")
        version = int(file.attrs["format_version"])
        if version != layout.FORMAT_VERSION:
            known = layout.FORMAT_VERSION
            raise CacheError(f"{path}: format version {version}, but this is featcache for version {known}; upgrade it")
        attributes = read_attributes(file)
        provenance = json.loads(file["provenance"][()])
        stored = {name: stored_data_sets(path, group) for name, group in file.items() if isinstance(group, h5py.Group)}
    if provenance["sealed"] is not True:
        raise CacheError(f"{path}: was never finished; run the same bin/embed again")
    size = path.stat().st_size
    if any(part.offset + part.n_bytes > size for parts in stored.values() for part in parts.values()):
        raise CacheError(f"{path}: cut off after {size:,} bytes; embed again")
    if stored_root_digest(attributes, provenance, stored) != provenance["root_digest"]:
        raise CacheError(f"{path}: does not match its root digest; delete the file and embed again")
    block_rows = int(attributes["block_rows"])
    return Cache(
        path=path,
        encoder=json.loads(attributes["encoder"]),
        encoder_fingerprint=attributes["encoder_fingerprint"],
        class_names=tuple(attributes["class_names"]),
        provenance=provenance,
        splits={name: CachedSplit(name, parts, block_rows) for name, parts in stored.items()},
    )


def read_attributes(file: Any) -> dict[str, Any]:
    """The root attributes of an open h5py file as JSON values."""
    names = [name.decode() if isinstance(name, bytes) else str(name) for name in file.attrs["class_names"]]
    return {
        "format": str(file.attrs["format"]),
        "format_version": int(file.attrs["format_version"]),
        "encoder": str(file.attrs["encoder"]),
        "encoder_fingerprint": str(file.attrs["encoder_fingerprint"]),
        "class_names": names,
        "block_rows": int(file.attrs["block_rows"]),
    }


def stored_data_sets(path: Path, group: Any) -> dict[str, Stored]:
    """Where a split's data sets lie. Raises CacheError for one that is not contiguous or not there."""
    found = {}
    for name in (*layout.CHECKED, "errors", "checksums"):
        offset = group[name].id.get_offset()
        if offset is None:
            raise CacheError(f"{path}: {group.name}/{name} is not stored as one contiguous piece")
        found[name] = Stored(path, int(offset), _plain(group[name].dtype), group[name].shape)
    return found


def _plain(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type without h5py's notes on it (that bytes are UTF-8)."""
    if dtype.names:
        return np.dtype([(name, _plain(dtype[name])) for name in dtype.names])
    if dtype.subdtype:
        return np.dtype((_plain(dtype.subdtype[0]), dtype.subdtype[1]))
    return np.dtype(dtype.str)


def stored_root_digest(
    attributes: Mapping[str, Any], provenance: Mapping[str, Any], stored: Mapping[str, Mapping[str, Stored]]
) -> str:
    """The root digest of what lies in the file."""
    splits = {}
    for split, parts in stored.items():
        shapes = [(name, part.dtype.str, part.shape) for name, part in parts.items() if name in layout.CHECKED]
        splits[split] = (shapes, parts["checksums"].map(), parts["errors"].map())
    return layout.root_digest(attributes, provenance, splits)
