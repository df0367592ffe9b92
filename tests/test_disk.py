"""Publishing: all or nothing, under a name of its own, and never at the cost of what is finished."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from featcache.common.disk import give_name, publish_folder
from featcache.common.errors import UserError

TEXT = "finished.txt"


def writer(text: str, meanwhile: Callable[[], object] = lambda: None) -> Callable[[Path], None]:
    """Writes a text; ``meanwhile`` is what other processes do before it is done."""

    def write(folder: Path) -> None:
        (folder / TEXT).write_text(text)
        meanwhile()

    return write


def test_all_that_end_at_once_are_kept(tmp_path: Path) -> None:
    everybody, folders = threading.Barrier(20, timeout=60), {}

    def publish(text: str) -> None:
        name = tmp_path / "runs" / "digits-50-1"
        folders[text] = publish_folder(name, writer(text, everybody.wait), numbered=True)

    threads = [threading.Thread(target=publish, args=(str(number),)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {folder.name for folder in folders.values()} == {f"digits-50-{number}" for number in range(1, 21)}
    assert {text: (folder / TEXT).read_text() for text, folder in folders.items()} == {text: text for text in folders}
    assert set((tmp_path / "runs").iterdir()) == set(folders.values())


def obstruct(path: Path, what: str) -> None:
    if what == "folder":
        path.mkdir()
        (path / "other").write_text("other")
    elif what == "file":
        path.write_text("other")
    else:
        path.symlink_to("nowhere")


@pytest.mark.parametrize("what", ["folder", "file", "dangling link"])
def test_a_name_that_is_taken_meanwhile_gets_a_number_and_nothing_is_replaced(tmp_path: Path, what: str) -> None:
    path = tmp_path / "mine-7"
    obstruct(tmp_path / "mine-7-1", what)
    assert publish_folder(path, writer("a", lambda: obstruct(path, what))) == tmp_path / "mine-7-2"
    assert publish_folder(path, writer("b"), numbered=True) == tmp_path / "mine-1"
    assert (tmp_path / "mine-7-2" / TEXT).read_text() == "a"
    for taken in (path, tmp_path / "mine-7-1"):
        assert taken.is_symlink() if what == "dangling link" else not (taken / TEXT).exists()


def test_an_empty_folder_gives_way(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert publish_folder(tmp_path / "out", writer("a")) == tmp_path / "out"
    assert (tmp_path / "out" / TEXT).read_text() == "a"


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match="no space left"):
        publish_folder(tmp_path / "out", writer("a", full))
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_renamed_is_kept_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(UserError, match="Permission denied") as caught:
        publish_folder(tmp_path / "out", writer("a"))
    (kept,) = tmp_path.iterdir()
    assert f"finished and kept as {kept}" in str(caught.value)
    assert (kept / TEXT).read_text() == "a"


def test_a_name_as_long_as_a_name_can_be(tmp_path: Path) -> None:
    folder = publish_folder(tmp_path / ("a" * 255), writer("a"))
    with pytest.raises(UserError, match="File name too long"):
        publish_folder(folder, writer("b"))
    assert {(path / TEXT).read_text() for path in tmp_path.iterdir()} == {"a", "b"}


def test_every_file_is_on_the_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, rename, synced = os.fsync, Path.rename, []

    def recorded(fd: int) -> None:
        fsync(fd)
        synced.append(os.fstat(fd).st_ino)

    def checked(path: Path, target: Path) -> Path:
        assert {path.stat().st_ino, *(file.stat().st_ino for file in path.iterdir())} <= set(synced)
        synced.clear()
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(Path, "rename", checked)
    publish_folder(tmp_path / "out", writer("a"))
    assert synced == [tmp_path.stat().st_ino]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_replaces_another_only_if_it_may(tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:
        monkeypatch.setattr(os, "link", refuse)

    def finished(text: str) -> Path:
        (tmp_path / ".out.onnx").write_text(text)
        return tmp_path / ".out.onnx"

    path = tmp_path / "out.v1.onnx"
    assert give_name(finished("a"), path) == path
    assert give_name(finished("b"), path) == tmp_path / "out.v1-1.onnx"
    assert give_name(finished("c"), path, replace=True) == path
    (tmp_path / "folder.onnx").mkdir()
    assert give_name(finished("d"), tmp_path / "folder.onnx", replace=True) == tmp_path / "folder-1.onnx"
    texts = {file.name: file.read_text() for file in tmp_path.iterdir() if file.is_file()}
    assert texts == {"out.v1.onnx": "c", "out.v1-1.onnx": "b", "folder-1.onnx": "d"}
