"""Bad input on the command line: one line that says how to mend it, the right exit status, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from conftest import QUICK, two_classes

Run = Callable[..., tuple[int, str, str]]


def test_a_text_file_named_jpg(run: Run, tmp_path: Path) -> None:
    root = two_classes(tmp_path / "p")
    (root / "train/a/note.jpg").write_text("no picture")
    status, out, _ = run("embed", *QUICK[:-2], "--dataset", root)
    assert status == 0
    assert "1 images have no features" in out
    assert "train/a/note.jpg: not a JPEG, PNG, WebP, BMP or TIFF image" in out
    status, out, _ = run("fit-head", "--clf", "centroid")
    assert status == 0
    assert "1 rows of the cache have no features or no label and are left out" in out
    status, _, err = run("embed", *QUICK[:-2], "--dataset", root, "--strict", "--storage", "float32")
    assert status == 1
    assert "train/a/note.jpg: not a JPEG" in err


def test_classes_of_one_training_image_each(run: Run, tmp_path: Path) -> None:
    run("embed", *QUICK[:-2], "--dataset", two_classes(tmp_path / "p", train=1))
    status, _, err = run("fit-head")
    assert status == 1
    assert "no class has two training rows, of which validation would take one: add images or a val split" in err


BAD = {
    "missing folder": (["embed", "--dataset", "./gone"], 1, "gone: no such folder"),
    "empty folder": (["embed", "--dataset", "./empty"], 1, "empty: no images found"),
    "one class": (["embed", "--dataset", "./one"], 1, "one class only"),
    "no train": (["embed", "--dataset", "./no_train"], 1, "val are named like splits, but none is one to train on"),
    "unknown backbone": (["embed", "--backbone", "resnet19"], 2, "unknown backbone 'resnet19': did you mean resnet"),
    "unknown stage": (["embed", *QUICK, "--cut", "layer5"], 2, "unknown stage 'layer5': expected one of stem, layer1"),
    "unknown data set": (["embed", "--dataset", "cifar11"], 2, "'cifar11': did you mean cifar10"),
    "unknown head": (["fit-head", "--clf", "forest"], 2, "invalid choice: 'forest'"),
    "unknown flag": (["embed", "--batchsize", "3"], 2, "unrecognized arguments: --batchsize 3; see embed --help"),
    "fraction 0": (["embed", "--fraction", "0"], 2, "--fraction 0: expected a number above 0 and at most 1"),
    "per class": (["embed", "--per-class", "9999"], 1, "--per-class 9999: class '0' has 142 training images"),
    "limit": (["embed", "--limit", "train:5"], 2, "'train:5' is not of the form train=2000,test=500"),
    "batch size": (["embed", "--batch-size", "0"], 2, "'0' is neither auto nor a whole number"),
    "unwritable": (["embed", *QUICK, "--cache-dir", "./file/features"], 1, "cannot be written (Not a directory)"),
    "no cache": (["fit-head"], 1, "no cache of vectors (found none at all); make one with bin/embed"),
    "no such cache": (["fit-head", "--cache", "gone.h5"], 1, "gone.h5: no such cache"),
    "no hdf5": (["fit-head", "--cache", "file"], 1, "file: cut off, damaged, or no feature cache"),
    "val fraction": (["fit-head", "--val-fraction", "1"], 2, "--val-fraction 1: expected a number between 0 and 1"),
    "set name": (["embed", "--name", "a/b"], 2, "--name 'a/b': expected letters, digits"),
    "run name": (["fit-head", "--name", "../x"], 2, "--name '../x': expected letters"),
    "other weights": (["embed", "--backbone", "resnet18", "--weights", "./r34.pth"], 1, "does not fit resnet18"),
}


@pytest.mark.parametrize(("arguments", "status", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    run: Run, tmp_path: Path, arguments: list[str], status: int, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no cache")
    (tmp_path / "one" / "only").mkdir(parents=True)
    (tmp_path / "one" / "only" / "x.png").write_bytes(b"")
    two_classes(tmp_path / "no_train")
    (tmp_path / "no_train" / "train").rename(tmp_path / "no_train" / "val")
    if "./r34.pth" in arguments:
        torch.save(torchvision.models.resnet34(weights=None).state_dict(), tmp_path / "r34.pth")
    before = sorted(tmp_path.rglob("*"))
    came, _, err = run(*arguments)
    assert came == status
    assert err.startswith(f"{arguments[0]}: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_cache_of_another_encoder_is_refused(run: Run, tmp_path: Path) -> None:
    run("embed", *QUICK)
    (path,) = (tmp_path / "features").glob("*.h5")
    status, _, err = run("fit-head", "--cache", path, "--backbone", "resnet50", "--dataset", "cifar10")
    assert status == 1
    assert (
        "is another cache than asked for: dataset is digits, not cifar10; backbone is timm/test_resnet, not resnet50"
        in err
    )
    status, _, err = run("fit-head", "--backbone", "resnet50")
    assert status == 1
    assert f"no cache of vectors for --backbone resnet50 (found {path.name})" in err


def test_a_truncated_cache_is_refused(run: Run, tmp_path: Path) -> None:
    run("embed", *QUICK)
    (path,) = (tmp_path / "features").glob("*.h5")
    path.write_bytes(path.read_bytes()[:-5000])
    status, _, err = run("fit-head", "--cache", path)
    assert (status, err.count("\n")) == (1, 1)
    assert "cut off" in err
    assert run("fit-head")[0] == 1
    assert run("embed", *QUICK)[0] == 0
    assert run("fit-head", "--clf", "centroid")[0] == 0


def test_without_a_network_the_default_weights_are_one_clear_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    status, _, err = run("embed", "--backbone", "resnet18")
    assert status == 1
    assert err.splitlines()[-1].startswith("embed: error: cannot download resnet18-f37072fd.pth")
    assert "Traceback" not in err
    assert not (tmp_path / "features").exists()
    assert not list(tmp_path.rglob("*.pth*"))


def test_a_taken_run_name_is_refused(run: Run) -> None:
    run("embed", *QUICK)
    assert run("fit-head", "--clf", "centroid", "--name", "r")[0] == 0
    status, _, err = run("fit-head", "--clf", "centroid", "--name", "r")
    assert status == 1
    assert "there is a run of that name" in err


def test_debug_shows_the_traceback(run: Run) -> None:
    assert "Traceback" in run("embed", "--dataset", "./gone", "--debug")[2]
