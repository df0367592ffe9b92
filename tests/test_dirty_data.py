"""A folder as the world leaves it: the job goes on, rows without features are told, heads leave them out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bombs import png, sparse
from conftest import QUICK, two_classes
from PIL import Image

from featcache.cache.cache_file import Cache

Run = Callable[..., tuple[int, str, str]]
EMBED = ["embed", *QUICK[:-2], "--workers", 0, "--dataset"]


@pytest.fixture
def dirty(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A folder with all kinds of damage in train/a, and what is to be told of each."""
    root = two_classes(tmp_path / "p")
    folder = root / "train" / "a"
    Image.effect_noise((400, 300), 50).save(folder / "whole.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:9000])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("no picture")
    Image.new("RGB", (10, 10), "red").save(folder / "gif.jpg", format="GIF")
    png(30_000, 30_000)(folder / "bomb.png")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "link.jpg").symlink_to("nowhere.jpg")
    sparse(1 << 33)(folder / "huge.jpg")
    return root, {
        "truncated.jpg": "damaged: image file is truncated",
        "empty.jpg": "the file is empty",
        "text.jpg": "not a JPEG, PNG, WebP, BMP or TIFF image",
        "gif.jpg": "(it is a GIF)",
        "bomb.png": "more pixels than the limit against decompression bombs",
        "pipe.jpg": "a FIFO, not a regular file",
        "link.jpg": "No such file",
        "huge.jpg": "a file of 8,589,934,592 bytes, above the limit",
    }


def test_the_job_goes_on_and_every_row_says_why(dirty: tuple[Path, dict[str, str]], run: Run) -> None:
    root, told = dirty
    status, out, _ = run(*EMBED, root)
    assert status == 0
    assert f"{len(told)} images have no features; heads leave them out:" in out
    (path,) = Path("features").glob("*.h5")
    train = Cache.open(path).splits["train"]
    assert set(train.errors) == {f"train/a/{name}" for name in told}
    for name, reason in told.items():
        assert reason in train.errors[f"train/a/{name}"]
        assert reason in out
    bad = np.flatnonzero(train.status)
    assert {train.ids[row] for row in bad} == set(train.errors)
    assert not train.load(bad).any()
    status, out, _ = run("fit-head", "--clf", "centroid", "--json", "--val-fraction", "0.3")
    record = json.loads(out)
    assert status == 0
    assert record["dataset"]["n_train"] + record["dataset"]["n_val"] == len(train) - len(told)
    assert f"{len(told)} rows of the cache have no features or no label and are left out" in record["notes"]
    status, out, _ = run(*EMBED, root)
    assert status == 0
    assert "nothing to do" in out
    assert f"{len(told)} images have no features" in out


def test_an_unreadable_file_is_told(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    root = two_classes(tmp_path / "p")
    unreadable = root / "train/b/0.png"
    unreadable.chmod(0)
    if os.access(unreadable, os.R_OK):  # this user may read everything
        opened = os.open

        def refusing(path: str, *arguments: int) -> int:
            if str(path) == str(unreadable):
                raise PermissionError(13, "Permission denied")
            return opened(path, *arguments)

        monkeypatch.setattr(os, "open", refusing)
    status, out, _ = run(*EMBED, root)
    assert status == 0
    assert "train/b/0.png: cannot be read: Permission denied" in out


def test_a_mended_image_is_embedded_and_the_others_are_not(dirty: tuple[Path, dict[str, str]], run: Run) -> None:
    root, told = dirty
    run(*EMBED, root)
    Image.new("RGB", (20, 20), "red").save(root / "train/a/text.jpg")
    status, out, _ = run(*EMBED, root, "--json")
    result = json.loads(out)
    assert status == 0
    assert result["rows_damaged"] == len(told) - 1
    assert result["rows"] - result["rows_reused"] == len(told)  # the damaged ones are tried again


def test_strict_fails_at_once_and_names_the_file(dirty: tuple[Path, dict[str, str]], run: Run) -> None:
    status, _, err = run(*EMBED, dirty[0], "--strict")
    assert status == 1
    assert err.count("\n") == 1
    assert "train/a/" in err
    assert "mend or remove it, or go without --strict" in err
    assert not list(Path("features").glob("*.h5"))
    run(*EMBED, dirty[0])
    status, _, err = run(*EMBED, dirty[0], "--strict")  # the rows are there already
    assert status == 1
    assert "mend or remove it, or go without --strict" in err
