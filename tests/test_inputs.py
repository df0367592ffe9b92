"""Which images are predicted, and in which order."""

from __future__ import annotations

import io
import os
from collections import Counter
from pathlib import Path

import pytest

from featcache.common.errors import UsageError, UserError
from featcache.sources.folders import LeftOut
from heads.serving import inputs
from heads.serving.inputs import inputs_of

NOTHING = io.BytesIO()


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def test_folders_are_walked_in_order_and_what_is_no_image_is_counted(tmp_path: Path) -> None:
    root = touch(tmp_path / "p", "b/2.jpg", "b/1.PNG", "a/deep/3.webp", "z.jpg", "notes.txt", ".hidden.jpg", ".h/x.jpg")
    (root / "a" / "loop").symlink_to(root)
    expected = ["b/2.jpg", "z.jpg", "a/deep/3.webp", "b/1.PNG", "b/2.jpg"]
    with inputs_of([str(root / "b" / "2.jpg"), str(root)], NOTHING) as found:
        for _ in range(2):
            assert list(found.paths()) == [str(root / name) for name in expected]
        assert found.counted() == (5, LeftOut(Counter({".txt": 1}), links=[str(root / "a" / "loop")]))


def test_a_link_that_leads_up_brings_no_images_from_above(tmp_path: Path) -> None:
    root = touch(tmp_path, "p/a/1.jpg", "p/b/2.jpg", "other/3.jpg")
    (root / "p" / "a" / "up").symlink_to(root / "p")
    (root / "p" / "a" / "other").symlink_to(root / "other")
    with inputs_of([str(root / "p" / "a")], NOTHING) as found:
        assert list(found.paths()) == [str(root / "p" / "a" / name) for name in ("1.jpg", "other/3.jpg")]
        _, left_out = found.counted()
    assert left_out.notes() == [f"links not followed, as they lead back to these folders: 1 ({root / 'p/a/up'})"]


def test_a_list_can_be_gone_through_again_and_paths_may_be_any_bytes() -> None:
    with inputs_of(["-"], io.BytesIO(b"a b.jpg\n\nc.jpg\r\ncaf\xe9.png")) as found:
        for _ in range(2):
            assert list(found.paths()) == ["a b.jpg", "c.jpg", os.fsdecode(b"caf\xe9.png")]
        assert found.counted()[0] == 3


def test_a_list_of_find_print0_may_have_line_ends_in_names(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"folder/a\n{i}.jpg" for i in range(50)]
    for at_once in (20, 33, 1 << 16):
        monkeypatch.setattr(inputs, "_AT_ONCE", at_once)  # the first zero byte decides
        listed = io.BytesIO("\0".join([*names, ""]).encode())
        with inputs_of(["-"], listed) as found:
            assert list(found.paths()) == names


def test_a_named_file_counts_whatever_its_name(tmp_path: Path) -> None:
    root = touch(tmp_path, "picture")
    with inputs_of([str(root / "picture")], NOTHING) as found:
        assert list(found.paths()) == [str(root / "picture")]


def counted(given: list[str], listed: bytes = b"") -> int:
    with inputs_of(given, io.BytesIO(listed)) as found:
        return found.counted()[0]


def test_bad_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.jpg: no such file or folder; expected images"):
        counted([str(tmp_path / "nowhere.jpg")])
    with pytest.raises(UsageError, match="can be read once"):
        counted(["-", "-"], b"a.jpg")
    with pytest.raises(UserError, match="no images found"):
        counted([str(touch(tmp_path / "empty", "a.txt"))])
    with pytest.raises(UserError, match="-: no images found"):
        counted(["-"], b"\n")
