"""Rows that are left out by name: which ones, what is said of the others, and what is recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from featcache.cache.cache_file import Cache
from featcache.common.errors import UserError
from heads.audit.findings import Finding, write_findings
from heads.exclusion import read_exclusion
from heads.rows import load_rows
from heads.source import Source

Run = Callable[..., tuple[int, str, str]]


def listed(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "out.txt"
    path.write_text("\n".join(lines))
    return path


def test_rows_leave_train_and_validation(cache: Cache, tmp_path: Path) -> None:
    whole = load_rows(cache, val_fraction=0.2)
    gone = [whole.train.ids[0], whole.val.ids[0], whole.train.ids[5]]
    exclusion = read_exclusion(listed(tmp_path, *gone, "nobody.jpg", whole.test.ids[0], ""))
    rows = load_rows(cache, val_fraction=0.2, exclude=exclusion)
    assert len(rows.dev) == 37
    assert set(rows.dev.ids) == set(whole.dev.ids) - set(gone)
    assert rows.test.ids == whole.test.ids
    assert rows.fingerprint != whole.fingerprint
    told = " ".join(rows.notes)
    assert "left out by --exclude out.txt: 3 train rows" in told
    assert "WARNING: 1 ids of out.txt match no row: nobody.jpg" in told
    assert f"are test rows, which stay unless a column split says test: {whole.test.ids[0]}" in told
    assert rows.chosen["exclude"]["rows"] == {"train": 3, "test": 0}
    kept = dict(zip(whole.dev.ids, whole.dev.features.load(), strict=True))
    np.testing.assert_array_equal(rows.dev.features.load(), np.stack([kept[name] for name in rows.dev.ids]))
    assert rows.recarved(3).chosen["exclude"] == rows.chosen["exclude"]
    source = Source(paths=(cache.path,), fingerprints=(cache.fingerprint,), val_fraction=0.2, exclude=exclusion)
    assert source.rows().fingerprint == rows.fingerprint


def test_test_rows_leave_only_by_their_split(cache: Cache, tmp_path: Path) -> None:
    whole = load_rows(cache)
    table = tmp_path / "findings.csv"
    rows = [
        Finding(kind="outlier", score=1, exclude=True, split="test", id=whole.test.ids[2]),
        Finding(kind="outlier", score=1, exclude=True, split="train", id=whole.train.ids[2]),
        Finding(kind="outlier", score=1, exclude=False, split="train", id=whole.train.ids[3]),
    ]
    write_findings(table, rows)
    left = load_rows(cache, exclude=read_exclusion(table))
    assert set(whole.test.ids) - set(left.test.ids) == {whole.test.ids[2]}
    assert set(whole.dev.ids) - set(left.dev.ids) == {whole.train.ids[2]}


def test_names_may_hold_anything(tmp_path: Path) -> None:
    names = ['a,"b"', "line\nbreak", "=1+1", "\u2028", " space "]
    table = tmp_path / "findings.csv"
    write_findings(table, [Finding(kind="damaged", score=1, exclude=True, split="train", id=name) for name in names])
    assert read_exclusion(table).by_split == {"train": frozenset(names)}
    (tmp_path / "windows.csv").write_bytes("\ufeffid,exclude\r\nä,YES\r\nb,no\r\n".encode())
    assert read_exclusion(tmp_path / "windows.csv").ids == {"ä"}
    same = read_exclusion(listed(tmp_path, "b", "a")), read_exclusion(listed(tmp_path, "a", "b", "a"))
    assert same[0].fingerprint == same[1].fingerprint


def test_what_names_nothing_is_refused(cache: Cache, tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    for content, expected in (
        (b"\n\n", "names no rows"),
        (b"\xff\xfe", "no UTF-8 text"),
        (b"id,exclude\na,no\n", "no row of it says yes"),
        (b"id,split\na,dev\n", "the split 'dev' of 'a'; expected one of train, val, test"),
        (b"nothing-here.jpg\n", "none of its 1 ids is a row here (first: nothing-here.jpg)"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match="--exclude") as error:
            load_rows(cache, exclude=read_exclusion(path))
        assert expected in str(error.value)
    with pytest.raises(UserError, match="a folder, not a regular file"):
        read_exclusion(tmp_path)


def test_both_commands_take_the_list(cache: Cache, run: Run, tmp_path: Path) -> None:
    gone = cache.splits["train"].ids[:2]
    listed(tmp_path, *gone)
    status, out, told = run("fit-head", "--clf", "ridge", "--exclude", "out.txt", "--json")
    assert status == 0
    record = json.loads(out)
    assert record["dataset"]["chosen"]["exclude"]["rows"] == {"train": 2, "test": 0}
    assert record["dataset"]["n_train"] + record["dataset"]["n_val"] == 38
    assert "left out by --exclude out.txt: 2 train rows" in told
    status, out, told = run("finetune", "--exclude", "out.txt", "--dry-run")
    assert status == 0
    assert "left out by --exclude out.txt: 2 train rows" in out
    status, _, told = run("fit-head", "--exclude", "none.txt")
    assert (status, told.count("\n")) == (1, 1)
    assert "--exclude none.txt: cannot be read (No such file or directory)" in told
