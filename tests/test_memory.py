"""Digests are remembered while a file is the same, and taken anew as soon as anything about it changes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from featcache.common import hashing, user_cache
from featcache.common.user_cache import remembered_digests

Files = tuple[Path, list[str], Callable[[str], bytes], list[str]]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A folder of settled files, their names, a function that digests one, and the names that it was called with."""
    names = [f"{i}.bin" for i in range(10)]
    for name in names:
        (tmp_path / name).write_bytes(os.urandom(100))
    read: list[str] = []

    def digest(name: str) -> bytes:
        read.append(name)
        return hashing.digest((tmp_path / name).read_bytes())

    time.sleep(user_cache._RACY_NS / 1e9 + 0.1)
    return tmp_path, names, digest, read


def fresh(root: Path, names: list[str]) -> np.ndarray:
    return np.stack([np.frombuffer(hashing.digest((root / name).read_bytes()), np.uint8) for name in names])


def test_only_what_changed_is_read_again(files: Files) -> None:
    root, names, digest, read = files
    np.testing.assert_array_equal(remembered_digests(root, names, digest), fresh(root, names))
    assert sorted(read) == names
    read.clear()
    np.testing.assert_array_equal(remembered_digests(root, names[::-1], digest), fresh(root, names[::-1]))
    assert read == []
    (root / "3.bin").write_bytes(b"x" * 100)
    (root / "new.bin").write_bytes(b"y")
    os.replace(root / "4.bin", root / "5.bin")
    left = [name for name in (*names, "new.bin") if name != "4.bin"]
    np.testing.assert_array_equal(remembered_digests(root, left, digest), fresh(root, left))
    assert sorted(read) == ["3.bin", "5.bin", "new.bin"]


def test_a_change_that_keeps_size_and_modification_time_is_noticed(files: Files) -> None:
    root, names, digest, read = files
    remembered_digests(root, names, digest)
    before = (root / "3.bin").stat()
    (root / "3.bin").write_bytes(b"x" * 100)
    os.utime(root / "3.bin", ns=(before.st_atime_ns, before.st_mtime_ns))
    read.clear()
    np.testing.assert_array_equal(remembered_digests(root, names, digest), fresh(root, names))
    assert read == ["3.bin"]


def test_a_file_that_has_just_been_written_is_not_relied_on(files: Files) -> None:
    root, names, digest, read = files
    (root / "3.bin").write_bytes(b"1" * 100)
    remembered_digests(root, names, digest)
    read.clear()
    remembered_digests(root, names, digest)
    assert read == ["3.bin"]


def test_damaged_memory_is_passed_over(files: Files) -> None:
    root, names, digest, read = files
    remembered_digests(root, names, digest)
    for path in (user_cache.folder() / "digests").iterdir():
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    read.clear()
    np.testing.assert_array_equal(remembered_digests(root, names, digest), fresh(root, names))
    assert sorted(read) == names


def test_files_that_are_gone_are_left_to_the_reader(files: Files) -> None:
    root, names, _, _ = files
    found = remembered_digests(root, [*names, "gone.bin"], lambda name: bytes(16) if name == "gone.bin" else b"x" * 16)
    assert not found[-1].any()
    assert found[:-1].all()


def test_what_could_not_be_read_is_read_again(files: Files) -> None:
    root, names, digest, read = files
    assert not remembered_digests(root, names, lambda name: bytes(16)).any()
    np.testing.assert_array_equal(remembered_digests(root, names, digest), fresh(root, names))
    assert sorted(read) == names


def test_memory_that_cannot_be_written_is_done_without(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    root, names, digest, read = files
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "0.bin"))
    for _ in range(2):
        np.testing.assert_array_equal(remembered_digests(root, names, digest), fresh(root, names))
    assert len(read) == 2 * len(names)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    np.testing.assert_array_equal(remembered_digests(root, names, digest), fresh(root, names))


def test_what_several_processes_remember_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_cache, "_RACY_NS", 0)
    names = [f"{i}.bin" for i in range(40)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    time.sleep(0.05)
    parts = [names[i::4] for i in range(4)]
    together = threading.Barrier(4)
    read: list[str] = []

    def digest(name: str) -> bytes:
        if any(name == part[0] for part in parts):
            together.wait(timeout=10)  # none has saved what it read before all have loaded what was known
        read.append(name)
        return name.encode().ljust(16)

    threads = [threading.Thread(target=remembered_digests, args=(tmp_path, part, digest)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(read) == sorted(names)
    read.clear()
    remembered_digests(tmp_path, names, digest)
    assert read == []
