"""Find where data sets lie in an HDF5 file: the only module that lets HDF5's library parse a file.

Files may come from strangers. Whatever is not exactly as FORMAT.md says is refused: links of any other kind than hard
ones, members that are missing or too many, other types, shapes that do not fit each other or the file, filters, and
storage outside the file. The library itself can crash or hang on hostile metadata, so ``featcache.cache.sandbox``
runs this module in a child process for files that it does not know.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from featcache.cache import file_format
from featcache.common.errors import CacheError, corrupt_error

_INTEGERS = ("format_version", "block_rows")
_TEXTS = ("format", "encoder", "encoder_fingerprint")
_ATTRIBUTES = {*_INTEGERS, *_TEXTS, "class_names"}
#: The most bytes that one attribute may take, and one id.
_MAX_ATTRIBUTE = 1 << 24
_MAX_ID = 4096
#: The most bytes of the canary's features, and of a file that may be nothing but holes.
_MAX_CANARY = 1 << 30
_MAX_HOLES = 1 << 26


@dataclass(frozen=True)
class Structure:
    """What HDF5's part of a cache file says, as JSON values.

    Attributes:
        attributes: the root attributes.
        provenance: the offset of its bytes.
        splits: for each ``rows``, ``feature_shape``, ``storage``, ``id_size`` and the ``offsets`` of its data sets.
        canary: the same for ``/canary``.
    """

    attributes: dict[str, Any]
    provenance: int
    splits: dict[str, dict[str, Any]]
    canary: dict[str, Any]

    def data_sets(self, group: str) -> file_format.DataSets:
        """The type and shape of each data set of a split, or of ``canary``."""
        told = dict(self.canary if group == "canary" else self.splits[group])
        told.pop("offsets")
        rows, told["feature_shape"] = told.pop("rows"), tuple(told["feature_shape"])
        if group == "canary":
            return file_format.canary_data_sets(rows, **told)
        return file_format.split_data_sets(rows, block_rows=self.attributes["block_rows"], **told)


def read_structure(path: Path) -> Structure:
    """Parse a cache file and check its structure; nothing of its rows is read.

    Raises:
        CacheError: not a cache of this format version, or anything else than FORMAT.md says.
        OSError, KeyError, ValueError, TypeError, RuntimeError: from HDF5, for files that it refuses.
    """
    import h5py

    check_superblock(path)
    with h5py.File(path, "r", locking=False) as file:
        attributes = _read_attributes(path, file)
        n_bytes = _size(path)
        members = _members(path, file)
        splits = {name: members[name] for name in file_format.SPLITS if name in members}
        if set(members) != {"provenance", "canary", *splits} or "train" not in splits:
            expected = "/provenance, /canary, /train and at most /test and /val"
            raise _members_error(path, f"expected {expected}", members, least={"provenance", "canary", "train"})
        provenance = members["provenance"]
        _check(path, provenance, "provenance", h5py.string_dtype("utf-8", file_format.PROVENANCE_SIZE), ())
        structure = Structure(
            attributes=attributes,
            provenance=_offset(path, provenance),
            splits={name: _describe(path, group) for name, group in splits.items()},
            canary=_describe(path, members["canary"]),
        )
        _check_rows(path, structure)
        extents = [(structure.provenance, file_format.PROVENANCE_SIZE)]
        for name, group in (*splits.items(), ("canary", members["canary"])):
            data_sets = structure.data_sets(name)
            offsets = (structure.canary if name == "canary" else structure.splits[name])["offsets"]
            found = _members(path, group)
            if set(found) != set(data_sets):
                expected = f"expected {_few(data_sets)} in /{name}"
                raise _members_error(path, expected, found, least=set(data_sets))
            for data_set, (dtype, shape) in data_sets.items():
                _check(path, found[data_set], f"{name}/{data_set}", dtype, shape)
                offsets[data_set] = _offset(path, found[data_set])
                extents.append((offsets[data_set], file_format.n_bytes(dtype, shape)))
    extents.sort()
    if extents[-1][0] + extents[-1][1] > n_bytes:
        raise corrupt_error(path, f"cut off after {n_bytes:,} bytes; embed again")
    if any(start + size > after for (start, size), (after, _) in pairwise(extents)):
        raise corrupt_error(path, "data sets overlap in the file")
    return structure


def check_superblock(path: Path) -> None:
    """Refuse a file by its first bytes, without HDF5's library, which can't tell damage from a disk that fails.

    Raises:
        CacheError: it is no HDF5 file, cut off, or marked as open for writing.
        OSError: it can't be read.

    Source: HDF5 File Format Specification 3.0, II.A.2, superblock versions 2 and 3.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        head, size = os.pread(fd, 48, 0), os.fstat(fd).st_size
    finally:
        os.close(fd)
    if not head.startswith(b"\x89HDF\r\n\x1a\n") or size < 48:
        raise corrupt_error(path, "cut off, damaged, or no feature cache (no HDF5 signature); embed again")
    if head[8] not in (2, 3) or head[9] != 8:
        return  # another program's
    end = int.from_bytes(head[28:36], "little")
    if size < end:
        raise corrupt_error(path, f"cut off, damaged, or no feature cache ({size:,} of {end:,} bytes); embed again")
    if head[11] & 1:  # set for as long as it is open, and left by a process that was killed
        reason = (
            "open for writing in another process; close it there; if that process was killed, delete the file and "
            "embed again, or clear its mark with HDF5's h5clear --status FILE"
        )
        raise CacheError(reason, path=path, kind="in use")


def _size(path: Path) -> int:
    """Of the file; one that is little more than holes is refused, for to read it takes memory that it never took."""
    status = path.stat()
    held = status.st_blocks * 512
    if status.st_size > _MAX_HOLES and 0 < held < status.st_size // 64:
        reason = f"a sparse file of {status.st_size:,} bytes that holds {held:,}"
        raise CacheError(reason, path=path, kind="unreadable")  # file systems count what a file holds in their own ways
    return status.st_size


def _check_rows(path: Path, structure: Structure) -> None:
    """That all rows are of one shape and type, and blocks of the size that FORMAT.md says."""
    groups = [structure.canary, *structure.splits.values()]
    shape, storage = tuple(groups[0]["feature_shape"]), groups[0]["storage"]
    if any((tuple(group["feature_shape"]), group["storage"]) != (shape, storage) for group in groups):
        raise corrupt_error(path, "features of the splits and the canary differ in shape or type")
    row_bytes = file_format.n_bytes(np.dtype(storage), shape)
    told, expected = structure.attributes["block_rows"], file_format.block_rows(row_bytes)
    if told != expected:
        reason = f"the attribute block_rows is {told}; expected {expected} for rows of {row_bytes:,} bytes"
        raise corrupt_error(path, reason)
    if structure.canary["rows"] * row_bytes > _MAX_CANARY:
        raise corrupt_error(path, f"/canary/features takes more than {_MAX_CANARY:,} bytes")


def _read_attributes(path: Path, file: Any) -> dict[str, Any]:
    import h5py

    texts = (file_format.FORMAT.encode(), file_format.FORMAT)  # this version's type of text, and version 1's
    if not {"format", "format_version"} <= set(file.attrs) or file.attrs["format"] not in texts:
        raise CacheError("an HDF5 file, but no feature cache; bin/embed makes one", path=path, kind="foreign")
    version = _attribute(path, file, "format_version")
    if isinstance(version, int) and version != file_format.FORMAT_VERSION:
        known, is_newer = file_format.FORMAT_VERSION, version > file_format.FORMAT_VERSION
        raise CacheError(
            f"format version {version}, but this is featcache for version {known}; "
            f"{'upgrade it' if is_newer else 'embed again'}",
            path=path,
            kind="newer format" if is_newer else "old format",
        )
    if h5py.h5a.get_num_attrs(file.id) != len(_ATTRIBUTES) or set(file.attrs) != _ATTRIBUTES:
        reason = f"expected the attributes {_few(_ATTRIBUTES)} and no other"
        raise CacheError(reason, path=path, kind="foreign" if set(file.attrs) > _ATTRIBUTES else "corrupt")
    values: dict[str, Any] = {name: _attribute(path, file, name) for name in sorted(_ATTRIBUTES)}
    kinds = dict.fromkeys(_INTEGERS, int) | dict.fromkeys(_TEXTS, str) | {"class_names": list}
    for name, kind in kinds.items():
        if not isinstance(values[name], kind):
            raise corrupt_error(path, f"the attribute {name} is of another type than FORMAT.md says")
    if values["block_rows"] < 1:
        raise corrupt_error(path, f"the attribute block_rows is {values['block_rows']}; expected 1 or more")
    return values


def _attribute(path: Path, file: Any, name: str) -> int | str | list[str]:
    """An integer, a fixed-length UTF-8 string, or a list of them."""
    import h5py

    attribute = h5py.h5a.open(file.id, name.encode())
    kind, space = attribute.get_type(), attribute.get_space()
    text = isinstance(kind, h5py.h5t.TypeStringID) and not kind.is_variable_str()
    if not text and not isinstance(kind, h5py.h5t.TypeIntegerID):
        raise corrupt_error(path, f"the attribute {name} is of another type than FORMAT.md says")
    if space.get_simple_extent_npoints() * kind.get_size() > _MAX_ATTRIBUTE:
        raise corrupt_error(path, f"the attribute {name} takes more than {_MAX_ATTRIBUTE:,} bytes")
    shape = attribute.shape
    if len(shape) > 1 or (not text and shape):
        raise corrupt_error(path, f"the attribute {name} has the shape {shape}")
    value = file.attrs[name]
    if not text:
        return int(value)
    decoded = [item.decode() if isinstance(item, bytes) else str(item) for item in (value if shape else [value])]
    return decoded if shape else decoded[0]


def _members(path: Path, group: Any) -> dict[str, Any]:
    """What a group holds; by hard links alone, so that nothing leads out of the file or in a circle."""
    import h5py

    if not isinstance(group, h5py.Group):
        raise corrupt_error(path, f"{group.name} is no group")
    if len(group) > 16:
        raise corrupt_error(path, f"{group.name} has {len(group):,} members")
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise corrupt_error(path, f"{group.name} holds a link that leads elsewhere")
    return {name: group[name] for name in group}


def _describe(path: Path, group: Any) -> dict[str, Any]:
    """What decides the types and shapes of a group's data sets."""
    import h5py

    members = _members(path, group)
    features, ids = members.get("features"), members.get("ids")
    if not isinstance(features, h5py.Dataset) or not isinstance(ids, h5py.Dataset):
        raise corrupt_error(path, f"expected features and ids in {group.name}, found {_few(members)}")
    storage = {"<f2": "float16", "<f4": "float32"}.get(features.dtype.str)
    if storage is None or not 2 <= len(features.shape) <= 5 or 0 in features.shape:
        shape = " x ".join(map(str, features.shape))
        raise corrupt_error(path, f"{group.name}/features is {features.dtype} of {shape}; expected float16 or float32")
    id_size = ids.dtype.itemsize
    if ids.dtype.kind != "S" or not 1 <= id_size <= _MAX_ID:
        raise corrupt_error(path, f"{group.name}/ids is {ids.dtype}; expected strings of up to {_MAX_ID:,} bytes")
    rows, *feature_shape = (int(n) for n in features.shape)
    return {"rows": rows, "feature_shape": feature_shape, "storage": storage, "id_size": id_size, "offsets": {}}


def _check(path: Path, data_set: Any, name: str, dtype: Any, shape: tuple[int, ...]) -> None:
    import h5py

    if not isinstance(data_set, h5py.Dataset):
        raise corrupt_error(path, f"/{name} is no data set")
    if _plain(data_set.dtype) != _plain(dtype) or data_set.shape != shape:
        expected = f"expected {_plain(dtype)} of {shape}"
        raise corrupt_error(path, f"/{name} is {data_set.dtype} of shape {data_set.shape}; {expected}")


def _offset(path: Path, data_set: Any) -> int:
    """Where it lies in this file, in one uncompressed piece."""
    import h5py

    creation = data_set.id.get_create_plist()
    plain = creation.get_layout() == h5py.h5d.CONTIGUOUS
    offset = data_set.id.get_offset() if plain else None
    if offset is None or creation.get_external_count() or creation.get_nfilters():
        raise corrupt_error(path, f"{data_set.name} is not stored as one contiguous piece of this file")
    if offset % file_format.ALIGNMENT:
        raise corrupt_error(path, f"{data_set.name} does not begin at a multiple of {file_format.ALIGNMENT:,} bytes")
    return int(offset)


def _plain(dtype: Any) -> Any:
    """The type without h5py's notes on it (that bytes are UTF-8)."""
    if dtype.names:
        offsets = [dtype.fields[name][1] for name in dtype.names]
        formats = [_plain(dtype[name]) for name in dtype.names]
        fields: Any = {"names": dtype.names, "formats": formats, "offsets": offsets, "itemsize": dtype.itemsize}
        return np.dtype(fields)
    if dtype.subdtype:
        return np.dtype((_plain(dtype.subdtype[0]), dtype.subdtype[1]))
    return np.dtype(dtype.str)


def _members_error(path: Path, expected: str, found: Any, *, least: set[str]) -> CacheError:
    """Something is missing, or another program added something to a cache that may be sound."""
    return CacheError(
        f"{expected}, found {_few(found)}", path=path, kind="foreign" if set(found) > least else "corrupt"
    )


def _few(names: Any) -> str:
    shown = sorted(map(str, names))
    return ", ".join(shown[:12]) + (f" and {len(shown) - 12:,} more" if len(shown) > 12 else "")


def to_json(structure: Structure) -> str:
    """For the way from a child process; ``from_json`` reads it."""
    return json.dumps(vars(structure))


def from_json(text: str | bytes) -> Structure:
    """What ``to_json`` wrote."""
    return Structure(**json.loads(text))
