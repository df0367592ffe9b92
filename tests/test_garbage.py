"""bin/cache gc: what it names, what it deletes, and what it leaves alone."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
from conftest import BACKBONE
from making import age, files, flip, golden, interrupted, noise

from featcache.cache import sandbox
from featcache.common import locks
from featcache.common.locks import building
from featcache.embedding.job import Embedding
from featcache.maintenance import garbage as garbage_module
from featcache.maintenance.garbage import delete, find_garbage

Embed = Callable[..., Embedding]
Run = Callable[..., tuple[int, str, str]]

FLAGS = ["--backbone", BACKBONE, "--weights", "none", "--image-size", "32"]
DAY = 86400


def test_gc_spares_what_may_be_of_use(embed: Embed, embed_blocks: Embed, folder: Path, run: Run) -> None:
    cache = embed(folder).run().cache
    features = cache.path.parent
    partial = interrupted(embed_blocks(noise(88)), 66)
    (features / "notes.txt").write_text("mine")
    foreign = partial.with_name(partial.name.replace(locks.host(), "0123abcd"))
    shutil.copy(partial, foreign)
    (features / "of another program.h5").write_bytes(b"junk")
    (features / "other-program-01234567.h5").write_bytes(b"")
    with h5py.File(features / "other-program-01234567.h5", "w") as file:
        file["x"] = 1
    newer = features / "digits-timm_test_resnet-76543210.h5"
    shutil.copy(cache.path, newer)
    with h5py.File(newer, "r+") as file:
        file.attrs["format_version"] = 99
    outside = folder.parent / "outside.h5"
    outside.write_bytes(b"junk")
    (features / "a-link-01234567.h5").symlink_to(outside)
    link = features / f".x-y-01234567.h5.{locks.host()}.partial"
    link.symlink_to(outside)
    idle = f".{cache.path.name}.{locks.host()}.lock"
    before = files(features)
    assert run("cache", "gc", "--delete", "--damaged", "--superseded")[0] == 0
    assert files(features) == before - {idle}
    assert outside.exists()


def test_gc_names_first_and_deletes_when_told(embed_blocks: Embed, run: Run) -> None:
    partial = interrupted(embed_blocks(noise(88)), 66)
    features = partial.parent
    age(partial, 8)
    foreign = partial.with_name(partial.name.replace(locks.host(), "0123abcd"))
    shutil.copy(partial, foreign)
    age(foreign, 3)
    leftover = partial.with_name(f"{partial.name}.12345")
    leftover.write_bytes(b"half")
    before = files(features)
    status, out, _ = run("cache", "gc")
    assert status == 0
    assert f"would delete {Path('features') / partial.name}" in out
    assert "nobody is building it: last written 8.0 days ago" in out
    assert str(foreign.name) not in out
    assert files(features) == before
    told = json.loads(run("cache", "gc", "--delete", "--json")[1])["garbage"]
    assert {Path(each["file"]).name: each["deleted"] for each in told} == {
        partial.name: True,
        leftover.name: True,
        f".{embed_blocks(noise(88)).path.name}.{locks.host()}.lock": True,
    }
    assert files(features) == {foreign.name}
    assert "deleted features/.noise" in run("cache", "gc", "--delete", "--older-than", 2)[1]
    assert files(features) == set()
    assert run("cache", "gc")[1] == "features: nothing to delete\n"
    assert run("cache", "gc", "--older-than", "-1")[0] == 2


def test_gc_leaves_what_is_being_built(embed_blocks: Embed, run: Run) -> None:
    work = embed_blocks(noise(88))
    partial = interrupted(work, 66)
    age(partial, 30)
    before = files(partial.parent)
    with building(work.path):
        assert "nothing to delete" in run("cache", "gc", "--delete")[1]
    assert files(partial.parent) == before
    assert work.run().rows_reused == 64


def test_gc_deletes_no_file_that_changed_or_is_in_use_since_it_was_judged(embed_blocks: Embed) -> None:
    work = embed_blocks(noise(88))
    partial = interrupted(work, 66)
    age(partial, 30)
    garbage = {each.path: each for each in find_garbage(partial.parent)}[partial]
    with building(work.path):
        assert delete(garbage) == "a process is building that cache"
    age(partial, 0)
    assert delete(garbage) == "it changed meanwhile"
    assert partial.exists()


def test_gc_of_damaged_caches(embed: Embed, embed_blocks: Embed, folder: Path, run: Run) -> None:
    sound = embed(folder).run().cache
    torn = embed_blocks(noise(40)).run().cache
    flip(torn, "train", "features", 39)
    cut = embed(folder, storage="float32").run().cache
    cut.path.write_bytes(cut.path.read_bytes()[:5000])
    assert f"features/{torn.path.name}" not in run("cache", "gc")[1]
    out = run("cache", "gc", "--damaged", "--delete")[1]
    assert "damaged: /train/features, rows 32 to 39" in out
    assert files(sound.path.parent) == {sound.path.name}


def test_gc_of_superseded_caches(embed: Embed, run: Run) -> None:
    small = embed(noise(30)).run().cache
    embed(noise(15, "half")).run()
    whole = embed(noise(80)).run().cache
    again = embed(noise(80, "again")).run().cache  # the same images, newer
    other = embed(noise(30), storage="float32").run().cache
    images = embed(noise(60, "images", seed=1)).run().cache
    out = run("cache", "gc", "--superseded")[1]
    assert f"{small.path.name} (" in out
    assert "all its 42 images are in " in out
    assert run("cache", "gc", "--superseded", "--delete")[0] == 0
    assert files(whole.path.parent) == {again.path.name, other.path.name, images.path.name}
    flip(again, "train", "features", 0)  # no longer one to rely on
    small = embed(noise(30), cut=2).run().cache
    larger = embed(noise(80), cut=2).run().cache
    flip(larger, "train", "features", 0)
    assert f"features/{small.path.name}" not in run("cache", "gc", "--superseded")[1]


def fails(error: BaseException) -> Callable[..., Any]:
    def call(*_args: object, **_kwargs: object) -> Any:
        raise error

    return call


TRANSIENT: dict[str, tuple[object, str, object]] = {
    "the child is killed": (sandbox, "_CHILD", "import os; os.kill(os.getpid(), 9)"),
    "the child is short of memory": (sandbox, "_CHILD", "raise MemoryError"),
    "no child can be started": (subprocess, "run", fails(OSError(errno.EMFILE, "Too many open files"))),
    "the disk fails": (os, "preadv", fails(OSError(errno.EIO, "Input/output error"))),
    "a server forgot the file": (os, "pread", fails(OSError(errno.ESTALE, "Stale file handle"))),
    "HDF5 refuses": (h5py, "File", fails(OSError("Unable to synchronously open file (file read failed)"))),
    "no memory": (h5py, "File", fails(MemoryError())),
}


@pytest.mark.parametrize(("module", "name", "value"), TRANSIENT.values(), ids=TRANSIENT)
def test_gc_keeps_what_could_not_be_read(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object, name: str, value: object
) -> None:
    path = golden(tmp_path / "features")
    if name == "File":  # parsed here
        monkeypatch.setattr(sandbox, "is_accepted", lambda file: True)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, value)
        status, out, _ = run("cache", "gc", "--damaged", "--superseded", "--delete", "--json")
    assert (status, path.exists()) == (0, True)
    told = json.loads(out)
    assert told["garbage"] == []
    assert [(each["file"], each["kind"]) for each in told["left_alone"]] == [(f"features/{path.name}", "unreadable")]


def test_gc_keeps_what_another_process_writes_to(run: Run, tmp_path: Path) -> None:
    path = golden(tmp_path / "features")
    with h5py.File(path, "r+") as file:
        file["train/labels"][0] = 1  # no checksum matches this
        file.flush()
        out = run("cache", "gc", "--damaged", "--delete")[1]
        assert f"left alone features/{path.name}: open for writing in another process; close it there" in out
    assert path.exists()
    assert f"deleted features/{path.name}" in run("cache", "gc", "--damaged", "--delete")[1]
    assert not path.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux's kernel")
def test_gc_keeps_a_copy_under_way(run: Run, tmp_path: Path) -> None:
    path = golden(tmp_path / "features")
    data = path.read_bytes()
    with path.open("wb") as copy:
        copy.write(data[:100_000])
        copy.flush()
        assert "open for writing in another process" in run("cache", "gc", "--damaged", "--delete")[1]
    assert path.exists()


def test_gc_deletes_only_what_is_damaged_whenever_it_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = golden(tmp_path / "features")
    data, status = path.read_bytes(), path.stat()
    seen = iter(["damaged: once", ""])
    with monkeypatch.context() as patch:
        patch.setattr(garbage_module, "_damage_seen", lambda path: next(seen))
        assert find_garbage(path.parent, damaged=True) == []
    path.write_bytes(data[:-5000])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    (found,) = find_garbage(path.parent, damaged=True)
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert delete(found) == "it reads well now"
    monkeypatch.setattr(os, "pread", fails(OSError(errno.EIO, "Input/output error")))
    assert "Input/output error" in delete(found)
    assert path.exists()


def test_gc_deletes_older_formats_and_keeps_what_others_added(run: Run, tmp_path: Path) -> None:
    old, noted, more = (golden(tmp_path / "features", f"golden-tiny-0000000{i}.h5") for i in range(3))
    with h5py.File(old, "r+") as file:
        file.attrs["format_version"] = 1
        file.attrs["format"] = "featcache"  # of variable length, as that version had it
    with h5py.File(noted, "r+") as file:
        file.attrs["note"] = "mine"
    with h5py.File(more, "r+") as file:
        file["train/mine"] = [1, 2]
    told = json.loads(run("cache", "gc", "--damaged", "--delete", "--json")[1])
    assert [each["reason"].rpartition("; ")[2] for each in told["garbage"]] == ["embed again"]
    assert {each["kind"] for each in told["left_alone"]} == {"foreign"}
    assert files(noted.parent) == {noted.name, more.name}
