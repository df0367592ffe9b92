"""Parse a cache file: in a child process, unless this user has accepted the file before.

HDF5's library can crash, hang or take all memory on hostile metadata. The child has limits on time and memory, and its
death is an error of one line. A file is accepted once its root digest was compared, and recognised by device, inode,
size and time of change; a copy of it, or a change to it, makes it unknown again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from featcache.cache.hdf5_structure import Structure, check_superblock, from_json, read_structure, to_json
from featcache.cache.raw_reads import CacheFile
from featcache.common import hashing, user_cache
from featcache.common.errors import CACHE_FAULTS, CacheError

#: Limits of the child that parses an unknown file.
MEMORY_BYTES = 4 << 30
CPU_SECONDS = 20
WALL_SECONDS = 60

#: Without the working folder in the path: what lies there is not to be imported.
_CHILD = "import sys; sys.path[:] = filter(None, sys.path); from featcache.cache.sandbox import child; child()"
#: What HDF5 and h5py raise for files that they refuse.
#: They raise the same for a disk that fails and for lack of memory, so that none of it is a sign of damage.
REFUSALS = (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError)


def structure_of(file: CacheFile) -> Structure:
    """Parse a cache file, here or in a child.

    Raises:
        CacheError: it is not as FORMAT.md says (then ``is_damage``), or it could not be parsed.
    """
    try:
        check_superblock(file.path)
        return read_structure(file.path) if is_accepted(file) else _from_child(file.path)
    except REFUSALS as error:
        raise refused(file.path, error) from error


def refused(path: Path, error: BaseException) -> CacheError:
    """The one line for what the system, or HDF5's library, says of a file."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return _unreadable_error(path, f"cannot be read ({' '.join(reason.split())[:160]})")


def _unreadable_error(path: Path, reason: str) -> CacheError:
    return CacheError(
        f"{reason}; try again, and if that stays so, delete it and embed again", path=path, kind="unreadable"
    )


def is_accepted(file: CacheFile) -> bool:
    """Whether this user has accepted this very file."""
    with suppress(OSError, RuntimeError):
        return _mark(file).is_file()
    return False


def accept(file: CacheFile, root_digest: str) -> None:
    """Remember a file whose root digest was compared; where that can't be written, it is parsed in a child again."""
    with suppress(OSError, RuntimeError):
        mark = _mark(file)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(root_digest + "\n")


def _mark(file: CacheFile) -> Path:
    return user_cache.folder() / "accepted" / hashing.fingerprint(list(file.identity))


def _from_child(path: Path) -> Structure:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[2]), *filter(os.path.isabs, sys.path)]),
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", _CHILD, str(path)]
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=WALL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        reason = f"HDF5 did not finish parsing it in {WALL_SECONDS} s: damaged, or hostile"
        raise _unreadable_error(path, reason) from error
    except (OSError, MemoryError) as error:  # no process can be started
        raise refused(path, error) from error
    if done.returncode < 0:
        with suppress(ValueError):
            name = signal.Signals(-done.returncode).name
            reason = f"parsing it ended a child process ({name}): damaged, or hostile, or memory is short"
            raise _unreadable_error(path, reason)
    try:
        told = json.loads(done.stdout)
        if "error" in told:
            kind = next(kind for kind in CACHE_FAULTS if kind == told["kind"])
            raise CacheError(str(told["error"]), path=path, kind=kind)
        return from_json(done.stdout)
    except (ValueError, TypeError, KeyError, StopIteration) as error:
        reason = " ".join(done.stderr.decode(errors="replace").split())[-160:]
        raise _unreadable_error(path, f"could not be parsed in a child process ({reason})") from error


def child() -> None:
    """The child process: parse ``argv[1]`` within limits, write its structure or the error as JSON."""
    import resource

    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_AS, MEMORY_BYTES),
    ):
        with suppress(ValueError, OSError):
            resource.setrlimit(limit, (value, value))
    path = Path(sys.argv[1])
    try:
        sys.stdout.write(to_json(read_structure(path)))
    except CacheError as error:
        sys.stdout.write(error_json(error))
    except REFUSALS as error:
        sys.stdout.write(error_json(refused(path, error)))


def error_json(error: CacheError) -> str:
    """An error, for the way from a child process."""
    return json.dumps({"error": error.reason, "kind": error.kind})
