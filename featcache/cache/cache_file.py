"""Open a finished cache file, checked and read-only.

Needs numpy, h5py and xxhash alone. Every block that is read is compared with its checksum first.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featcache.cache import file_format, sandbox
from featcache.cache.damage import Damage
from featcache.cache.hdf5_structure import Structure
from featcache.cache.raw_reads import CacheFile, Stored
from featcache.cache.recorded_fields import checked_encoder, checked_provenance
from featcache.cache.split import CachedSplit
from featcache.common import hashing
from featcache.common.errors import CacheError, corrupt_error
from featcache.common.locks import is_open_for_writing


@dataclass(frozen=True)
class Cache:
    """A cache file.

    Attributes:
        path: of the file.
        encoder: how images became features (backbone, weights, preprocessing, cut, precision, engine, storage, views).
        encoder_fingerprint: digest of ``encoder``.
        class_names: by label.
        provenance: where the rows came from and what building cost (see FORMAT.md).
        splits: by name.
        canary: the data sets of ``/canary``.
        n_bytes: of the file.
    """

    path: Path
    encoder: dict[str, Any]
    encoder_fingerprint: str
    class_names: tuple[str, ...]
    provenance: dict[str, Any]
    splits: dict[str, CachedSplit]
    canary: dict[str, Stored]
    n_bytes: int

    @classmethod
    def open(cls, path: str | Path) -> Cache:
        """Open a finished cache and check everything but the blocks of rows, which are checked when read.

        Raises:
            CacheError: no such file, or not a whole and sealed cache of this format version; ``kind`` says which.
        """
        path = Path(path)
        with _damage_or_a_writer(path):
            file = _file(path)
            structure = sandbox.structure_of(file)
            provenance = read_provenance(file, structure)
            if provenance["sealed"] is not True:
                raise CacheError("was never finished; run the same bin/embed again", path=path, kind="unfinished")
            data_sets = stored_data_sets(file, structure)
            root_digest = stored_root_digest(structure, provenance, data_sets)
            if root_digest != provenance["root_digest"]:
                raise corrupt_error(path, "does not match its root digest; delete the file and embed again")
            sandbox.accept(file, root_digest)
            file.close()
            return _cache(file, structure, provenance, data_sets)

    @classmethod
    def open_unsealed(cls, path: str | Path) -> Cache:
        """Open a file in the making: only blocks that have a checksum can be read.

        Raises:
            CacheError: it is no such file.
        """
        path = Path(path)
        with _damage_or_a_writer(path):
            file = _file(path, in_the_making=True)
            structure = sandbox.structure_of(file)
            return _cache(file, structure, read_provenance(file, structure), stored_data_sets(file, structure))

    def damages(self) -> list[Damage]:
        """All blocks of all splits that do not match their checksums; reads everything."""
        return [damage for split in self.splits.values() for damage in split.damages()]

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
        return len(self.splits["train"].row_shape) == (2 if self.encoder["views"] else 1)

    @property
    def is_byproduct(self) -> bool:
        """Whether fine-tuning made it for its own rows: commands take it for what they need, but begin with no such."""
        command = self.provenance["command"]
        return bool(command) and command[0] != "embed"

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


def find_caches(folder: Path, *, on_refusal: Callable[[CacheError], None] = lambda error: None) -> list[Cache]:
    """The caches of a folder, newest first by the time that they record.

    Args:
        folder: where they are.
        on_refusal: called with the error of each file that can't be opened; it is passed over.
    """
    found = []
    for path in sorted(folder.glob("[!.]*.h5")):
        try:
            found.append(Cache.open(path))
        except CacheError as error:
            on_refusal(error)
    return sorted(found, key=lambda cache: str(cache.provenance["created"]), reverse=True)


def _short(value: Any) -> str:
    return value if isinstance(value, str) else hashing.canonical_json(value)  # None becomes null


def _file(path: Path, *, in_the_making: bool = False) -> CacheFile:
    try:
        if stat.S_ISREG(path.stat().st_mode):
            return CacheFile(path, in_the_making=in_the_making)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CacheError("no such cache; bin/embed makes one", path=path, kind="absent") from error
    except OSError as error:
        raise sandbox.refused(path, error) from error
    raise CacheError("no regular file", path=path, kind="foreign")


@contextmanager
def _damage_or_a_writer(path: Path) -> Iterator[None]:
    """Call a file that looks damaged ``in use`` if a process has it open for writing: it may be half written."""
    try:
        yield
    except CacheError as error:
        if error.is_damage and is_open_for_writing(path):
            reason = "open for writing in another process; close it there"
            raise CacheError(reason, path=path, kind="in use") from error
        raise


def _cache(
    file: CacheFile, structure: Structure, provenance: dict[str, Any], data_sets: dict[str, dict[str, Stored]]
) -> Cache:
    attributes = structure.attributes
    return Cache(
        path=file.path,
        encoder=checked_encoder(file.path, attributes),
        encoder_fingerprint=attributes["encoder_fingerprint"],
        class_names=tuple(attributes["class_names"]),
        provenance=provenance,
        splits={
            name: CachedSplit(
                name,
                data_sets[name],
                block_rows=attributes["block_rows"],
                class_names=tuple(attributes["class_names"]),
            )
            for name in structure.splits
        },
        canary=data_sets["canary"],
        n_bytes=file.size,
    )


def read_provenance(file: CacheFile, structure: Structure) -> dict[str, Any]:
    """The JSON of ``/provenance``, checked."""
    data = np.empty(file_format.PROVENANCE_SIZE, np.uint8)
    file.read_into(data, structure.provenance)
    return checked_provenance(file.path, data.tobytes())


def stored_data_sets(file: CacheFile, structure: Structure) -> dict[str, dict[str, Stored]]:
    """Where the data sets lie, by split (or ``canary``) and name."""
    return {
        group: {
            name: Stored(file, told["offsets"][name], dtype, shape)
            for name, (dtype, shape) in structure.data_sets(group).items()
        }
        for group, told in (*structure.splits.items(), ("canary", structure.canary))
    }


def stored_root_digest(
    structure: Structure, provenance: Mapping[str, Any], data_sets: Mapping[str, Mapping[str, Stored]]
) -> str:
    """The root digest of what lies in the file."""
    each = {f"{group}/{name}": part for group, parts in data_sets.items() for name, part in parts.items()}
    covered = {path: part.read() for path, part in each.items() if path.split("/")[1] not in file_format.CHECKED}
    covered |= {f"canary/{name}": part.read() for name, part in data_sets["canary"].items()}
    shapes = {path: (part.dtype, part.shape) for path, part in each.items()}
    return file_format.root_digest(structure.attributes, provenance, shapes, covered)
