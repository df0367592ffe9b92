"""Damages copies of a cache file and opens each: python tests/fuzz_cache.py FILE {flips,bytes,structure} CASES [SEED]

``flips`` flips one random bit; ``bytes`` damages a few bytes, mostly of HDF5's own, and half the time mends HDF5's
checksums over them; ``structure`` alters the file through HDF5 and then seals it again as a stranger would. Every case
must end in a clean refusal or in data that passes all checks: for flips and bytes, the very data of the original.

HDF5 parses each file in a forked child with limits, as featcache does in a child of its own. Prints counts as JSON.
"""

from __future__ import annotations

import json
import os
import random
import resource
import select
import signal
import struct
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from mutations import damaged, json_changed

from featcache import acceptance, layout
from featcache.cache import Cache, stored_data_sets, stored_root_digest
from featcache.cached_split import CachedSplit
from featcache.canary import stored_canary
from featcache.errors import CacheError
from featcache.skeleton import padded
from featcache.stored import CacheFile
from featcache.structure import Structure, from_json, read_structure, to_json

SECONDS = 10


def main() -> None:
    original, kind, cases, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int((*sys.argv, "0")[4])
    warnings.simplefilter("ignore")
    acceptance._from_child = parsed_in_a_fork
    acceptance.accept = lambda file, digest: None
    acceptance.is_accepted = lambda file: False
    data, expected = original.read_bytes(), contents(Cache.open(original))
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        path = Path(folder, "case.h5")
        for case in range(cases):
            rng = random.Random(f"{seed} {kind} {case}")
            applied = MUTATIONS[kind](rng, path, data)
            outcome, told = opened(path, None if kind == "structure" else expected)
            outcomes[outcome] += 1
            if outcome == "wrong":
                wrong.append(f"case {case}, {applied}: {told}")
    seconds = round(time.monotonic() - begun, 1)
    print(json.dumps({"outcomes": outcomes, "wrong": wrong[:20], "peak_mb": peak_mb(), "seconds": seconds}))


def peak_mb() -> int:
    """Of this process; what getrusage tells includes the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def opened(path: Path, expected: dict[str, bytes] | None) -> tuple[str, str]:
    """``refused``, ``child died``, ``same`` or ``wrong``, and why."""
    try:
        found = contents(Cache.open(path))
    except CacheError as error:
        told = str(error)
        if "\n" in told or len(told) > 600:
            return "wrong", f"no short line: {told!r}"
        return ("child died" if "ended a child" in told or "did not finish" in told else "refused"), told
    except Exception as error:  # noqa: BLE001  whatever else it is, it is wrong
        return "wrong", f"{type(error).__name__}: {error}"
    if expected is not None and found != expected:
        return "wrong", f"other data: {[name for name in expected if found.get(name) != expected[name]]}"
    return "same" if expected is not None else "passes its checks", ""


def contents(cache: Cache) -> dict[str, bytes]:
    """All that a reader can be told."""
    found = {"classes": repr(cache.class_names).encode(), "encoder": layout.canonical_json(cache.encoder).encode()}
    found["provenance"] = layout.canonical_json(cache.provenance).encode()
    canary = stored_canary(cache)
    found["canary"] = repr(canary.ids).encode() + canary.features.tobytes() + canary.pixels.tobytes()
    for name, split in cache.splits.items():
        found[f"{name}/features"] = split.load().tobytes()
        found[f"{name}/some"] = split.load(split.usable()[::3]).tobytes()
        for part in ("labels", "content", "status", "origin"):
            found[f"{name}/{part}"] = getattr(split, part).tobytes()
        found[f"{name}/told"] = repr((split.ids, split.errors)).encode()
    return found


def parsed_in_a_fork(path: Path) -> Structure:
    """What ``acceptance._from_child`` does, by a fork of this small process: a hundred times as fast."""
    receiving, sending = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(receiving)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (acceptance.MEMORY_BYTES, acceptance.MEMORY_BYTES))
        try:
            told = to_json(read_structure(path))
        except CacheError as error:
            told = json.dumps({"error": str(error)})
        except acceptance.REFUSALS as error:
            told = json.dumps({"error": str(acceptance.refused(path, error))})
        with os.fdopen(sending, "w") as pipe:
            pipe.write(told)
        os._exit(0)
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        finished = bool(select.select([pipe], [], [], SECONDS)[0])
        if not finished:
            os.kill(pid, signal.SIGKILL)
        text = pipe.read()
    status = os.waitpid(pid, 0)[1]
    if not finished:
        raise CacheError(f"{path}: HDF5 did not finish parsing it")
    if status:
        raise CacheError(f"{path}: parsing it ended a child process")
    told = json.loads(text)
    if "error" in told:
        raise CacheError(told["error"])
    return from_json(text)


def flipped(rng: random.Random, path: Path, data: bytes) -> str:
    at = rng.randrange(8 * len(data))
    out = bytearray(data)
    out[at // 8] ^= 1 << at % 8
    path.write_bytes(out)
    return f"bit {at}"


def bytes_damaged(rng: random.Random, path: Path, data: bytes) -> str:
    """Damage, in three of four cases in the first 8 KiB or in HDF5's other headers."""
    start = rng.choice(_headers(data)) if rng.random() < 0.75 else rng.randrange(len(data))
    length = min(rng.choice((64, 600)), len(data) - start)
    out = damaged(rng, data[start : start + length])
    whole = data[:start] + out + data[start + length :]
    if mend := rng.random() < 0.5:
        whole = checksums_mended(whole)
    path.write_bytes(whole)
    return f"{length} bytes at {start}, checksums mended: {mend}"


_FOUND: dict[int, list[int]] = {}


def _headers(data: bytes) -> list[int]:
    """Where HDF5's own structures begin."""
    if len(data) not in _FOUND:
        places, at = [0], data.find(b"OHDR")
        while at >= 0:
            places.append(at)
            at = data.find(b"OHDR", at + 1)
        _FOUND[len(data)] = places
    return _FOUND[len(data)]


def checksums_mended(data: bytes) -> bytes:
    """HDF5's checksums of the superblock and of the first chunk of each object header, made right."""
    out = bytearray(data)
    if len(out) >= 48:
        out[44:48] = struct.pack("<I", lookup3(bytes(out[:44])))
    for at in _headers(data)[1:]:
        if out[at : at + 4] != b"OHDR" or at + 16 > len(out):
            continue
        flags = out[at + 5]
        begin = at + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        end = begin + width + int.from_bytes(out[begin : begin + width], "little")
        if end + 4 <= len(out) and end - at < 100_000:
            out[end : end + 4] = struct.pack("<I", lookup3(bytes(out[at:end])))
    return bytes(out)


def lookup3(data: bytes) -> int:
    """Bob Jenkins' hashlittle (2006, http://burtleburtle.net/bob/c/lookup3.c), which HDF5 takes for its metadata."""
    mask, length = 0xFFFFFFFF, len(data)

    def rotated(x: int, k: int) -> int:
        return ((x << k) | (x >> (32 - k))) & mask

    a = b = c = (0xDEADBEEF + length) & mask
    at = 0
    while length - at > 12:
        words = struct.unpack_from("<III", data, at)
        a, b, c = (a + words[0]) & mask, (b + words[1]) & mask, (c + words[2]) & mask
        for k, step in zip((4, 6, 8, 16, 19, 4), range(6), strict=True):
            if step % 3 == 0:
                a, c = (((a - c) & mask) ^ rotated(c, k)), (c + b) & mask
            elif step % 3 == 1:
                b, a = (((b - a) & mask) ^ rotated(a, k)), (a + c) & mask
            else:
                c, b = (((c - b) & mask) ^ rotated(b, k)), (b + a) & mask
        at += 12
    if not length:
        return c
    words = struct.unpack("<III", data[at:].ljust(12, b"\0"))
    a, b, c = (a + words[0]) & mask, (b + words[1]) & mask, (c + words[2]) & mask
    for k, step in zip((14, 11, 25, 16, 4, 14, 24), range(7), strict=True):
        if step % 3 == 0:
            c = ((c ^ b) - rotated(b, k)) & mask
        elif step % 3 == 1:
            a = ((a ^ c) - rotated(c, k)) & mask
        else:
            b = ((b ^ a) - rotated(a, k)) & mask
    return c


DATA_SETS = (*layout.CHECKED, "errors", "checksums")


def structure_changed(rng: random.Random, path: Path, data: bytes) -> str:
    """One to three changes through HDF5; then checksums and root digest that are right again, where they can be."""
    path.write_bytes(data)
    applied = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        change = rng.choice(CHANGES)
        applied.append(change.__name__)
        with suppress(Exception), h5py.File(path, "r+", locking=False) as file:
            change(rng, file)
    with suppress(Exception):
        sealed_again(path)
    return ", ".join(applied)


def sealed_again(path: Path) -> None:
    """Make all checksums and the root digest those of what the file holds now, as a stranger could."""
    file, structure = CacheFile(path), read_structure(path)
    stored = stored_data_sets(file, structure)
    with path.open("r+b") as out:
        for name in structure.splits:
            split = CachedSplit(name, stored[name], block_rows=structure.attributes["block_rows"], n_classes=10)
            checksums = split.checksums.copy()
            for part in layout.CHECKED:
                for block, values in split.blocks(part, check=False):
                    checksums[block][part] = np.frombuffer(layout.checksum(values), np.uint8)
            out.seek(stored[name]["checksums"].offset)
            out.write(checksums.tobytes())
        out.flush()
        text = np.empty(layout.PROVENANCE_SIZE, np.uint8)
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
            file.attrs.create("encoder_fingerprint", np.bytes_(layout.fingerprint(json.loads(text))))


def provenance_changed(rng: random.Random, file: Any) -> None:
    text = json_changed(rng, file["provenance"][()].rstrip())
    if rng.random() < 0.1:
        text = rng.choice((b"[" * 60000, b"{}", b"[]", b"null", b"\xff", b'{"a":' * 9000))
    file["provenance"][()] = text[: layout.PROVENANCE_SIZE].ljust(layout.PROVENANCE_SIZE)


CHANGES: tuple[Callable[[random.Random, Any], None], ...] = (
    member_removed, member_added, many_members, link, hard_link, split_renamed, remade, remade, values_changed,
    values_changed, attribute_changed, encoder_changed, provenance_changed, provenance_changed,
)  # fmt: skip

MUTATIONS = {"flips": flipped, "bytes": bytes_damaged, "structure": structure_changed}

if __name__ == "__main__":
    main()
