"""A cache file in, altered out, as a stranger could: members, links, types, layouts, values; then sealed again."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from mutations import json_changed

from featcache.build.allocation import padded
from featcache.cache import file_format
from featcache.cache.cache_file import stored_data_sets, stored_root_digest
from featcache.cache.hdf5_structure import read_structure
from featcache.cache.raw_reads import CacheFile
from featcache.cache.split import CachedSplit
from featcache.common import hashing


def sealed_again(path: Path) -> None:
    """Make all checksums and the root digest those of what the file holds now, as a stranger could."""
    file, structure = CacheFile(path), read_structure(path)
    stored = stored_data_sets(file, structure)
    with path.open("r+b") as out:
        for name in structure.splits:
            split = CachedSplit(
                name, stored[name], block_rows=structure.attributes["block_rows"], class_names=tuple("0123456789")
            )
            checksums = split.checksums.copy()
            for part in file_format.CHECKED:
                for block, values in split.blocks(part, check=False):
                    checksums[block][part] = np.frombuffer(hashing.checksum(values), np.uint8)
            out.seek(stored[name]["checksums"].offset)
            out.write(checksums.tobytes())
        out.flush()
        text = np.empty(file_format.PROVENANCE_SIZE, np.uint8)
        file.read_into(text, structure.provenance)
        provenance = json.loads(text.tobytes())
        provenance["root_digest"] = stored_root_digest(structure, provenance, stored)
        out.seek(structure.provenance)
        out.write(padded(provenance))


def some_group(rng: random.Random, file: Any) -> Any:
    return file[rng.choice(("train", "test", "canary", "/"))]


def some_data_set(rng: random.Random, file: Any) -> tuple[Any, str]:
    group = file[rng.choice(("train", "test", "canary"))]
    return group, rng.choice(list(group))


def member_removed(rng: random.Random, file: Any) -> None:
    group, name = some_data_set(rng, file)
    del group[name]


def member_added(rng: random.Random, file: Any) -> None:
    some_group(rng, file).create_dataset("extra", data=np.arange(rng.choice((1, 1000))))


def many_members(rng: random.Random, file: Any) -> None:
    for i in range(rng.choice((20, 3000))):
        some_group(rng, file).create_group(f"g{i}")


def link(rng: random.Random, file: Any) -> None:
    group, name = some_data_set(rng, file)
    target = rng.choice(
        (h5py.SoftLink(f"{group.name}/{name}"), h5py.SoftLink("/"), h5py.ExternalLink("/etc/passwd", "/x"),
         h5py.ExternalLink("case.h5", "/train"), h5py.SoftLink("../../x"))
    )  # fmt: skip
    del group[name]
    group[name] = target


def hard_link(rng: random.Random, file: Any) -> None:
    group, name = some_data_set(rng, file)
    other, other_name = some_data_set(rng, file)
    if group[name] != other[other_name]:
        del group[name]
        group[name] = rng.choice((other[other_name], file["/"], group))


def split_renamed(rng: random.Random, file: Any) -> None:
    file.move(rng.choice(("train", "test", "canary", "provenance")), rng.choice(("val", "extra", "Train", "train2")))


def remade(rng: random.Random, file: Any) -> None:
    """A data set of another type, shape, layout or filter under the same name."""
    group, name = some_data_set(rng, file)
    values = group[name][()]
    del group[name]
    shape = values.shape
    match rng.randrange(9):
        case 0:
            group.create_dataset(name, data=values, chunks=True, compression=rng.choice(("gzip", "lzf")))
        case 1:
            group.create_dataset(name, shape=(2**40, *shape[1:]), dtype=values.dtype, chunks=(16, *shape[1:]))
        case 2:
            group.create_dataset(name, shape=shape, dtype=values.dtype, external=[("/etc/passwd", 0, 10**6)])
        case 3:
            group.create_dataset(name, data=np.zeros(shape, rng.choice(("f8", "i4", "u1", "S3", ">f2", "c8", "?"))))
        case 4:
            group.create_dataset(name, data=values[:-1])
        case 5:
            group.create_dataset(name, data=values.reshape((1, *shape)))
        case 6:
            group.create_dataset(name, shape=shape, dtype=h5py.string_dtype())
        case 7:
            layout_ = h5py.VirtualLayout(shape=shape, dtype=values.dtype)
            layout_[...] = h5py.VirtualSource("/etc/passwd", "x", shape=shape)
            group.create_virtual_dataset(name, layout_)
        case _:
            group.create_dataset(name, data=h5py.Empty(values.dtype if values.dtype.names is None else "f4"))


def values_changed(rng: random.Random, file: Any) -> None:
    """Other values in a data set, whose checksums will be right: ids that lead elsewhere, labels of no class."""
    group = file[rng.choice(("train", "test"))]
    match rng.randrange(5):
        case 0:
            ids = group["ids"][()]
            ids[rng.randrange(len(ids))] = rng.choice(
                (b"../../x", b"/etc/passwd", b"\xff\xfe", b"", b"a\x1b[31m", ids[0])
            )
            group["ids"][...] = ids
        case 1:
            group["labels"][0] = rng.choice((2**62, -5, 10**6))
        case 2:
            group["status"][...] = rng.choice((1, 7, 255))
        case 3:
            group["origin"][...] = rng.choice((1, 255))
        case _:
            group["features"][0] = np.nan


def attribute_changed(rng: random.Random, file: Any) -> None:
    name = rng.choice(list(file.attrs))
    value = rng.choice(
        (1, -1, 0, 2**62, 1.5, "text", "", "\ud800x", "[" * 30000, [1, 2], ["a"] * 5, np.zeros((3, 3)), b"\xff",
         np.bool_(True), h5py.Empty("f4"), np.zeros(2, "S4"))
    )  # fmt: skip
    if rng.random() < 0.2:
        del file.attrs[name]
    elif rng.random() < 0.3:
        file.attrs["extra"] = value
    else:
        file.attrs[name] = value


def encoder_changed(rng: random.Random, file: Any) -> None:
    text = json_changed(rng, bytes(file.attrs["encoder"]))
    file.attrs.create("encoder", np.bytes_(text), dtype=h5py.string_dtype("utf-8", len(text)))
    if rng.random() < 0.7:
        with suppress(ValueError):
            file.attrs.create("encoder_fingerprint", np.bytes_(hashing.fingerprint(json.loads(text))))


def provenance_changed(rng: random.Random, file: Any) -> None:
    text = json_changed(rng, file["provenance"][()].rstrip())
    if rng.random() < 0.1:
        text = rng.choice((b"[" * 60000, b"{}", b"[]", b"null", b"\xff", b'{"a":' * 9000))
    file["provenance"][()] = text[: file_format.PROVENANCE_SIZE].ljust(file_format.PROVENANCE_SIZE)


CHANGES: tuple[Callable[[random.Random, Any], None], ...] = (
    member_removed, member_added, many_members, link, hard_link, split_renamed, remade, remade, values_changed,
    values_changed, attribute_changed, encoder_changed, provenance_changed, provenance_changed,
)  # fmt: skip
