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
import sys
import tempfile
import time
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path

import h5py
from hdf5_checksums import checksums_mended, headers
from mutations import damaged
from structure_changes import CHANGES, sealed_again

from featcache.cache import sandbox
from featcache.cache.cache_file import Cache
from featcache.cache.canary import stored_canary
from featcache.cache.hdf5_structure import Structure, from_json, read_structure, to_json
from featcache.common import hashing
from featcache.common.errors import CacheError

SECONDS = 10


def main() -> None:
    original, kind, cases, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int((*sys.argv, "0")[4])
    warnings.simplefilter("ignore")
    sandbox._from_child = parsed_in_a_fork
    sandbox.accept = lambda file, digest: None
    sandbox.is_accepted = lambda file: False
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
    found = {"classes": repr(cache.class_names).encode(), "encoder": hashing.canonical_json(cache.encoder).encode()}
    found["provenance"] = hashing.canonical_json(cache.provenance).encode()
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
        resource.setrlimit(resource.RLIMIT_AS, (sandbox.MEMORY_BYTES, sandbox.MEMORY_BYTES))
        try:
            told = to_json(read_structure(path))
        except CacheError as error:
            told = sandbox.error_json(error)
        except sandbox.REFUSALS as error:
            told = sandbox.error_json(sandbox.refused(path, error))
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
        raise CacheError(told["error"], path=path, kind=told["kind"])
    return from_json(text)


def flipped(rng: random.Random, path: Path, data: bytes) -> str:
    at = rng.randrange(8 * len(data))
    out = bytearray(data)
    out[at // 8] ^= 1 << at % 8
    path.write_bytes(out)
    return f"bit {at}"


def bytes_damaged(rng: random.Random, path: Path, data: bytes) -> str:
    """Damage, in three of four cases in the first 8 KiB or in HDF5's other headers."""
    start = rng.choice(headers(data)) if rng.random() < 0.75 else rng.randrange(len(data))
    length = min(rng.choice((64, 600)), len(data) - start)
    out = damaged(rng, data[start : start + length])
    whole = data[:start] + out + data[start + length :]
    if mend := rng.random() < 0.5:
        whole = checksums_mended(whole)
    path.write_bytes(whole)
    return f"{length} bytes at {start}, checksums mended: {mend}"


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


MUTATIONS = {"flips": flipped, "bytes": bytes_damaged, "structure": structure_changed}

if __name__ == "__main__":
    main()
