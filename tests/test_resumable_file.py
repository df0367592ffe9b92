"""A file that is gone on with: the same bytes however often and wherever it was broken off, or a refusal."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from making import Stop, files

from featcache.common.errors import UserError
from featcache.common.locks import lock_now
from heads.serving import resumable_file
from heads.serving.resumable_file import ResumableFile, check_unchanged, resumed

JOB = {"run": "a", "--top": 1}
ITEMS = [f"item {number}" for number in range(40)]
WHOLE = "header\n" + "".join(f"{item} ä,\n" for item in ITEMS)


@pytest.fixture(autouse=True)
def always_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumable_file, "SYNC_EVERY", 0.0)


def go_on(path: Path, *, stop_after: int = 10**9, items: list[str] = ITEMS, **given: object) -> int:
    """Write what is missing, three items at a time; gives how many were there."""
    job = given.pop("job", JOB)
    with resumed(path, job, header="header\n", **given) as made:
        before = made.progress.items
        check_unchanged(made, iter(items))
        for start in range(before, len(items), 3):
            some = items[start : start + 3]
            made.append("".join(f"{item} ä,\n" for item in some), some, {"done": start + len(some)})
            if made.progress.items >= stop_after:
                raise Stop
        made.publish()
    return before


def test_in_one_go(tmp_path: Path) -> None:
    assert go_on(tmp_path / "new" / "out.csv") == 0
    assert (tmp_path / "new" / "out.csv").read_text() == WHOLE
    assert files(tmp_path / "new") == {"out.csv"}


def test_broken_off_by_an_error_it_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    for stop_after in (7, 20):
        with pytest.raises(Stop):
            go_on(path, stop_after=stop_after)
        assert not path.exists()
    assert go_on(path) == 21
    assert path.read_text() == WHOLE


def crash_states(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Folders as a crash would leave them, with the record always what the disk was told last."""
    path = folder / "out.csv"
    with resumed(path, JOB, header="header\n") as made:
        for start in range(0, len(ITEMS), 3):
            some = ITEMS[start : start + 3]
            made.append("".join(f"{item} ä,\n" for item in some), some, {})
            yield folder, path


def test_after_a_crash_at_any_moment_and_any_tear_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    rng = random.Random(0)
    for number, (folder, _) in enumerate(crash_states(tmp_path / "first")):
        copy = tmp_path / f"copy {number}"
        shutil.copytree(folder, copy)
        with (copy / ".out.csv.partial").open("ab") as file:  # written, and not recorded any more
            file.write("item 7 ä,\nitem 8".encode()[: rng.randrange(20)])
        assert go_on(copy / "out.csv") == min(3 * number + 3, len(ITEMS))
        assert (copy / "out.csv").read_text() == WHOLE
        assert files(copy) == {"out.csv"}


@pytest.mark.parametrize("damage", ["no record", "no partial", "torn record", "short partial", "odd record"])
def test_what_cannot_be_gone_on_with_is_begun_anew(tmp_path: Path, damage: str) -> None:
    path, partial, record = (tmp_path / name for name in ("out.csv", ".out.csv.partial", ".out.csv.partial.json"))
    with pytest.raises(Stop):
        go_on(path, stop_after=9)
    if damage.startswith("no"):
        (record if damage == "no record" else partial).unlink()
    elif damage == "short partial":
        os.truncate(partial, 12)
    elif damage == "torn record":
        os.truncate(record, 30)
    else:
        record.write_text(record.read_text().replace('"items": 9', '"items": "9"'))
    assert go_on(path) == 0
    assert path.read_text() == WHOLE


def test_another_job_other_items_and_a_finished_file_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    with pytest.raises(Stop):
        go_on(path, stop_after=9)
    with pytest.raises(UserError, match=r"begun with another --top, --abstain \(9 images are done\)"):
        go_on(path, job={**JOB, "--top": 2, "--abstain": 0.5})
    for items in (ITEMS[:8], ["other", *ITEMS[1:]], [*ITEMS[:4], "more", *ITEMS[4:]]):
        with pytest.raises(UserError, match=r"its first 9 images are not those .* begin anew with --restart"):
            go_on(path, items=items)
    longer = [*ITEMS[:9], "more", *ITEMS[9:]]
    assert go_on(path, items=longer) == 9  # what came after them is of no matter
    with pytest.raises(UserError, match="there is such a file already"):
        go_on(path)
    assert go_on(path, anew=True) == 0
    assert path.read_text() == WHOLE


def test_restart_drops_what_was_done(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        go_on(tmp_path / "out.csv", stop_after=9)
    assert go_on(tmp_path / "out.csv", anew=True, job={"run": "another"}) == 0
    assert (tmp_path / "out.csv").read_text() == WHOLE


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    with resumed(tmp_path / "out.csv", JOB, header=""), pytest.raises(UserError, match="another process is making it"):
        go_on(tmp_path / "out.csv")


def test_a_file_that_another_process_finishes_before_the_lock_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.csv"

    def late(fd: int, partial: Path) -> bool:
        path.write_text("another process's")
        return lock_now(fd, partial)

    monkeypatch.setattr(resumable_file, "lock_now", late)
    with pytest.raises(UserError, match="there is such a file already"):
        go_on(path)
    assert path.read_text() == "another process's"
    assert files(tmp_path) == {"out.csv"}


def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "out.csv", ResumableFile.append

    def full(made: ResumableFile, *given: object) -> None:
        if made.progress.items >= 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(made, *given)

    monkeypatch.setattr(ResumableFile, "append", full)
    with pytest.raises(OSError, match="No space"):
        go_on(path)
    monkeypatch.undo()
    assert go_on(path) == 12
    assert path.read_text() == WHOLE


def test_paths_that_are_no_unicode_are_spelled_out(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    with resumed(tmp_path / "out.csv", JOB, header="") as made:
        made.append(name + "\n", [name], {})
        made.publish()
    assert (tmp_path / "out.csv").read_bytes() == b"caf\\udce9\n"
