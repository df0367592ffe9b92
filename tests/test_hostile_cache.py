"""Cache files that are damaged or come from strangers: a clean refusal, or data that passes all checks; nothing else.

``FEATCACHE_FUZZ_CASES`` sets how many copies are damaged in each way; by hand, 20,000 in all.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from structure_changes import sealed_again

from featcache.build.allocation import padded
from featcache.cache import sandbox
from featcache.cache.cache_file import Cache, find_caches
from featcache.cache.raw_reads import CacheFile
from featcache.common.errors import CacheError

FUZZ = Path(__file__).with_name("fuzz_cache.py")
CASES = os.environ.get("FEATCACHE_FUZZ_CASES", "100")


@pytest.mark.parametrize("kind", ["flips", "bytes", "structure"])
def test_damaged_copies_are_refused_or_say_the_same(cache: Cache, kind: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(FUZZ.parents[1])}
    command = [sys.executable, FUZZ, cache.path, kind, CASES]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    print(kind, told)
    assert told["wrong"] == []
    assert set(told["outcomes"]) <= {"refused", "child died", "same", "passes its checks"}
    assert told["outcomes"]["refused"] > int(CASES) / 4
    assert told["peak_mb"] < 300


@pytest.fixture
def altered(cache: Cache, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the cache that a function of its open file has altered, sealed again where that is possible."""

    def alter(change: Callable[[h5py.File], None], *, sealed: bool = True) -> Path:
        path = tmp_path / "altered.h5"
        shutil.copy(cache.path, path)
        with h5py.File(path, "r+") as file:
            change(file)
        if sealed:
            sealed_again(path)
        return path

    return alter


def replaced(name: str, **arguments: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **arguments)

    return change


def linked(name: str, link: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = link

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (linked("train/labels", h5py.ExternalLink("/etc/passwd", "/x")), "/train holds a link that leads elsewhere"),
        (linked("train/labels", h5py.SoftLink("/train/labels")), "/train holds a link that leads elsewhere"),
        (linked("train", h5py.SoftLink("/test")), "/ holds a link that leads elsewhere"),
        (replaced("train/labels", shape=(2**50,), dtype="<i8", chunks=(64,)), "/train/labels is int64 of shape"),
        (replaced("train/labels", data=np.zeros(40, "<i4")), "expected int64 of"),
        (replaced("train/status", data=np.zeros(40, "u1"), compression="gzip"), "not stored as one contiguous piece"),
        (replaced("train/status", shape=(40,), dtype="u1", external=[("/etc/passwd", 0, 40)]), "one contiguous piece"),
        (lambda file: file.create_group("extra"), "expected /provenance, /canary, /train and at most /test and /val"),
        (lambda file: file.create_dataset("train/extra", data=1), "in /train, found .*extra"),
        (lambda file: file.attrs.create("extra", 1), "expected the attributes block_rows, class_names.* and no other"),
        (lambda file: file.attrs.create("encoder", [1.5]), "the attribute encoder is of another type"),
    ],
    ids=["external link", "link to itself", "soft link", "absurd shape", "other type", "compressed", "external storage",
         "extra group", "extra member", "extra attribute", "attribute of another type"],
)  # fmt: skip
def test_what_is_not_as_the_format_says_is_refused(altered: Callable[..., Path], change: object, told: str) -> None:
    with pytest.raises(CacheError, match=told):
        Cache.open(altered(change, sealed=False))


@pytest.mark.parametrize("name", [b"../../x", b"/etc/passwd", b"a/../b", b"", b"\xff\xfe", b"train/green/000.jpg"])
def test_ids_that_lead_elsewhere_are_refused(altered: Callable[..., Path], name: bytes) -> None:
    def change(file: h5py.File) -> None:
        ids = file["train/ids"][()]
        ids[7] = name
        file["train/ids"][...] = ids

    with pytest.raises(CacheError, match="/train/ids (holds|are not)"):
        _ = Cache.open(altered(change)).splits["train"].ids


def test_labels_of_no_class_are_refused(altered: Callable[..., Path]) -> None:
    def change(file: h5py.File) -> None:
        file["train/labels"][3] = 2

    with pytest.raises(CacheError, match="/train/labels go from 0 to 2; there are 2 classes"):
        _ = Cache.open(altered(change)).splits["train"].labels


def test_a_crash_of_hdf5_is_an_error_of_one_line(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "copy.h5"
    shutil.copy(cache.path, path)
    ending = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    monkeypatch.setattr(sandbox, "_CHILD", ending)
    with pytest.raises(CacheError, match=r"copy.h5: parsing it ended a child process \(SIGSEGV\): damaged, or hostile"):
        Cache.open(path)
    monkeypatch.setattr(sandbox, "_CHILD", "import time; time.sleep(60)")
    monkeypatch.setattr(sandbox, "WALL_SECONDS", 0.5)
    with pytest.raises(CacheError, match=r"copy.h5: HDF5 did not finish parsing it in 0.5 s"):
        Cache.open(path)
    assert Cache.open(cache.path).path == cache.path  # accepted when it was made: no child


def test_the_child_has_limits(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "copy.h5"
    shutil.copy(cache.path, path)
    greedy = "import featcache.cache.sandbox as a; read = a.read_structure; "
    greedy += "a.read_structure = lambda path: (bytearray({gib} << 30), read(path))[1]; a.child()"
    monkeypatch.setattr(sandbox, "_CHILD", greedy.format(gib=1))
    assert Cache.open(path).path == path
    path.touch()
    monkeypatch.setattr(sandbox, "_CHILD", greedy.format(gib=6))
    with pytest.raises(CacheError, match="copy.h5: cannot be read"):
        Cache.open(path)
    spin = "def spin(path):\n    while True: pass\n"
    busy = f"import featcache.cache.sandbox as a\n{spin}a.read_structure, a.CPU_SECONDS = spin, 1\na.child()"
    monkeypatch.setattr(sandbox, "_CHILD", busy)
    with pytest.raises(CacheError, match=r"ended a child process \(SIG(XCPU|KILL)\)"):
        Cache.open(path)


def test_what_lies_in_the_working_folder_is_not_imported(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "strange"
    folder.mkdir()
    shutil.copy(cache.path, folder / "copy.h5")
    for name in ("h5py", "numpy", "resource", "json", "featcache", "sitecustomize"):
        (folder / f"{name}.py").write_text("import pathlib; pathlib.Path('executed').touch()")
    monkeypatch.chdir(folder)
    assert Cache.open("copy.h5").class_names == cache.class_names
    assert not (folder / "executed").exists()


def test_a_file_of_holes_is_refused(cache: Cache, tmp_path: Path) -> None:
    path = tmp_path / "holes.h5"
    shutil.copy(cache.path, path)
    os.truncate(path, 1 << 33)
    with pytest.raises(CacheError, match="a sparse file of 8,589,934,592 bytes that holds"):
        Cache.open(path)


PROVENANCE = {
    "reused": [[5], [{"fingerprint": []}]],
    "resumed_on": [3],
    "cost": ["x"],
    "batch": ["16"],
    "command": ["embed"],
}


@pytest.mark.parametrize("name", PROVENANCE)
def test_provenance_of_the_wrong_type_is_refused(altered: Callable[..., Path], name: str) -> None:
    for value in PROVENANCE[name]:

        def change(file: h5py.File, value: object = value) -> None:
            told = {**json.loads(file["provenance"][()]), name: value}
            file["provenance"][()] = padded(told)

        with pytest.raises(CacheError, match="/provenance"):
            Cache.open(altered(change))


def test_a_file_is_parsed_here_only_once_it_was_accepted(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[Path] = []
    from_child = sandbox._from_child
    monkeypatch.setattr(sandbox, "_from_child", lambda path: parsed.append(path) or from_child(path))
    path = tmp_path / "copy.h5"
    shutil.copy(cache.path, path)
    Cache.open(path)
    assert parsed == [path]
    Cache.open(path)
    assert parsed == [path]
    path.touch()  # anything about the file may have changed
    assert not sandbox.is_accepted(CacheFile(path))
    Cache.open(path)
    assert parsed == [path, path]


def test_a_folder_with_strange_files_still_gives_its_caches(cache: Cache) -> None:
    folder = cache.path.parent
    (folder / "empty.h5").touch()
    (folder / "folder.h5").mkdir()
    (folder / "nowhere.h5").symlink_to("/nonexistent")
    os.mkfifo(folder / "pipe.h5")
    assert [found.path for found in find_caches(folder)] == [cache.path]
