"""bin/cache resume: the recorded bin/embed, in its folder, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import BACKBONE
from making import Stop

from featcache.cache.cache_file import Cache
from featcache.commands import embed as embed_command
from featcache.common import locks
from featcache.embedding.job import Embedding

Embed = Callable[..., Embedding]
Run = Callable[..., tuple[int, str, str]]

FLAGS = ["--backbone", BACKBONE, "--weights", "none", "--image-size", "32"]
DAY = 86400


@pytest.fixture
def asked(folder: Path, run: Run) -> Callable[..., Path]:
    """Begins ``bin/embed`` as it was asked for and stops it; gives the file in the making."""
    original = Embedding._provenance

    def begin(*argv: object, record: list[str] | None = None, begun_in: Path | None = None) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("featcache.embedding.embed_rows.BatchReader", lambda **_: (_ for _ in ()).throw(Stop))
            if record is not None or begun_in is not None:
                patch.setattr(
                    Embedding,
                    "_provenance",
                    lambda self: {
                        **original(self),
                        **({} if record is None else {"command": record}),
                        **({} if begun_in is None else {"working_folder": str(begun_in)}),
                    },
                )
            assert run("embed", *argv)[0] == 1
        (partial,) = Path("features").resolve().glob(".*.partial")
        return partial

    return begin


def test_resume_goes_on_with_what_was_asked(
    asked: Callable[..., Path], run: Run, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    partial = asked("--dataset", "./pictures", *FLAGS)
    elsewhere = folder.parent / "elsewhere"
    partial = partial.parent.rename(elsewhere) / partial.name
    monkeypatch.chdir(elsewhere)
    status, out, _ = run("cache", "resume", "--cache-dir", ".")
    assert status == 0
    assert f"in {folder.parent}: embed --dataset ./pictures --backbone timm/test_resnet" in out
    assert Path.cwd() == elsewhere
    (sealed,) = partial.parent.glob("[!.]*.h5")
    assert not partial.exists()
    assert len(Cache.open(sealed).splits["train"]) == 40
    assert "nothing to go on with" in run("cache", "resume", "--cache-dir", partial.parent)[1]


def test_resume_prints_one_object(asked: Callable[..., Path], run: Run) -> None:
    partial = asked("--dataset", "./pictures", *FLAGS)
    status, out, err = run("cache", "resume", partial.name, "--json")
    assert status == 0
    (told,) = json.loads(out)["resumed"]
    assert told["command"][:3] == ["embed", "--dataset", "./pictures"]
    assert told["result"]["rows"] == 52
    assert "embed --dataset ./pictures" in err


BAD_RECORDS = {
    "nothing": ([], "does not say how it was asked for"),
    "an unknown flag": (
        ["embed", "--dataset", "./pictures", "--run", "\x1b[2Jrm -rf"],
        r"unrecognized arguments: --run \x1b",
    ),
    "help": (["embed", "--help"], "records a command line that bin/embed does not take"),
    "another command": (["rm", "-rf", "pictures"], "records a command line that is no bin/embed"),
    "no words": ([1, None], "records a command line that is no bin/embed"),
    "an end of flags": (["embed", "--dataset", "./pictures", "--"], "unrecognized arguments: -"),
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_resume_runs_nothing_but_embed(
    asked: Callable[..., Path], run: Run, monkeypatch: pytest.MonkeyPatch, name: str, folder: Path
) -> None:
    record, words = BAD_RECORDS[name]
    partial = asked("--dataset", "./pictures", *FLAGS, record=record)
    monkeypatch.setattr(embed_command, "embed", None)
    status, out, err = run("cache", "resume")
    assert status == 1
    assert words in err
    assert err.count("\n") == 1
    assert "\x1b" not in out + err
    assert partial.exists()
    assert folder.exists()


def test_resume_of_a_plain_bin_embed(asked: Callable[..., Path], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = asked(*FLAGS, record=["embed"])
    done: list[object] = []

    def embed(arguments: object, console: object, given: tuple[str, ...]) -> dict[str, str]:
        done.append(arguments.dataset)
        return {"cache": partial.name}

    monkeypatch.setattr(embed_command, "embed", embed)
    assert run("cache", "resume")[0] == 0
    assert done == ["digits"]


def test_resume_where_the_folder_is_gone(asked: Callable[..., Path], run: Run, tmp_path: Path) -> None:
    asked("--dataset", "./pictures", *FLAGS, record=["embed", "--dataset", "./p\x1b[2J"], begun_in=tmp_path / "gone")
    status, _, err = run("cache", "resume")
    assert status == 1
    assert r"gone that it was begun in is gone; run by hand: embed --dataset './p\x1b[2J'" in err


def test_resume_says_where_the_images_changed(asked: Callable[..., Path], run: Run, folder: Path) -> None:
    partial = asked("--dataset", "./pictures", *FLAGS)
    (folder / "train/red/003.jpg").unlink()
    status, out, _ = run("cache", "resume")
    assert status == 0
    assert "images or settings changed since" in out
    assert partial.exists()


def test_resume_leaves_those_of_others(asked: Callable[..., Path], run: Run) -> None:
    partial = asked("--dataset", "./pictures", *FLAGS)
    foreign = partial.rename(partial.with_name(partial.name.replace(locks.host(), "0123abcd")))
    out = run("cache", "resume")[1]
    assert "of another host; name it to go on with it here" in out
    assert "nothing to go on with" in out
    assert run("cache", "resume", foreign.name)[0] == 0
    assert len(list(foreign.parent.glob("[!.]*.h5"))) == 1
    assert "no file in the making" in run("cache", "resume", "gone.partial")[2]
