"""bin/cache: what it lists and tells, what it finds damaged, what it deletes and leaves, what it goes on with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BACKBONE
from making import age, flip, interrupted, noise

from featcache.commands import cache as cache_command
from featcache.common import printable
from featcache.common.errors import UserError
from featcache.common.locks import building
from featcache.embedding.forward_passes import TrunkPasses
from featcache.embedding.job import Embedding
from featcache.maintenance.verification import todays_canary
from featcache.models.backbones import load_backbone
from featcache.sources.augmented_views import Augmentation
from featcache.sources.image_sets import load_dataset

Embed = Callable[..., Embedding]
Run = Callable[..., tuple[int, str, str]]

FLAGS = ["--backbone", BACKBONE, "--weights", "none", "--image-size", "32"]
DAY = 86400


def test_ls_lists_whatever_is_there_newest_first(
    embed: Embed, embed_blocks: Embed, folder: Path, run: Run, tmp_path: Path
) -> None:
    older = embed(folder, storage="float32").run().cache
    newer = embed(folder).run().cache
    age(newer.path, 3)  # the recorded time counts, not the file system's
    partial = interrupted(embed_blocks(noise(88)), 66)
    age(partial, 1)
    junk = older.path.with_name("junk.h5")
    junk.write_bytes(b"junk")
    age(junk, 2)
    status, out, _ = run("cache", "ls")
    assert status == 0
    *lines, reason = (line.rstrip() for line in out.splitlines() if ".h5" in line)
    assert [line.split()[0] for line in lines] == [newer.path.name, older.path.name, partial.name, junk.name]
    assert lines[0].split()[1:4] == ["pictures", BACKBONE, "52"]
    assert lines[0].endswith("yes")
    assert lines[2].endswith("64 %")  # 64 of 100
    assert lines[3].endswith("unreadable")
    assert reason.startswith("junk.h5: cut off, damaged, or no feature cache")
    status, out, err = run("cache", "ls", "--json")
    told = json.loads(out)["caches"]
    assert [each["state"] for each in told] == ["sealed", "sealed", "partial", "unreadable"]
    assert [each["kind"] for each in told] == ["", "", "", "corrupt"]
    assert (told[2]["rows_done"], told[2]["rows"]) == (64, 100)
    assert newer.path.name in err
    with building(embed_blocks(noise(88)).path):
        assert "64 %, at work now" in run("cache", "ls")[1]
    status, out, _ = run("cache", "ls", "--cache-dir", tmp_path / "none")
    assert (status, out) == (0, f"{tmp_path}/none: no caches; bin/embed makes one\n")


def test_info_tells_all(embed: Embed, embed_blocks: Embed, folder: Path, run: Run) -> None:
    (folder / "train/red/003.jpg").write_text("no picture")
    cache = embed(folder).run().cache
    more = load_dataset(str(folder))
    small = replace(more, splits={**more.splits, "test": more.splits["train"]}, name="twice")
    other = embed(small).run().cache
    status, out, _ = run("cache", "info", cache.path.name)
    assert status == 0
    for words in ("preprocessing.image_size: 32", "train: 40 rows of 96", f"fingerprint: {cache.fingerprint}"):
        assert words in out
    assert "train/red/003.jpg: not a JPEG, PNG, WebP, BMP or TIFF image" in out
    assert "copied" not in out
    told = json.loads(run("cache", "info", other.path, "--json")[1])
    assert told["encoder"] == cache.encoder
    assert told["root_digest"] == other.provenance["root_digest"]
    assert told["bytes"] == other.path.stat().st_size
    assert told["splits"]["train"]["classes"] == [{"name": "green", "rows": 20}, {"name": "red", "rows": 20}]
    assert [each["id"] for each in told["splits"]["train"]["damaged"]] == ["train/red/003.jpg"]
    # the damaged image is no row to copy, so it was tried again
    assert told["splits"]["test"]["origin"] == [{"file": None, "rows": 1}, {"file": cache.path.name, "rows": 39}]
    assert f"39 rows copied from {cache.path.name}" in run("cache", "info", other.path)[1]
    partial = interrupted(embed_blocks(noise(88)), 66)
    assert "train: 88 rows of 32 x 8 x 8, 64 of them done" in run("cache", "info", partial.name)[1]
    status, _, err = run("cache", "info", "gone.h5")
    assert (status, err) == (1, "cache: error: gone.h5: no such cache; bin/embed makes one\n")


def test_verify_reads_all_and_compares_the_canary(embed: Embed, folder: Path, run: Run) -> None:
    cache = embed(folder).run().cache
    views = embed(folder, cut=2, storage="float32", augmentation=Augmentation(views=2, seed=3)).run().cache
    status, out, _ = run("cache", "verify")
    assert status == 0
    assert out.count("every block matches its checksum") == 2
    assert out.count("canary agrees: features of") == 2
    assert "GB/s" in out
    told = json.loads(run("cache", "verify", "--no-canary", "--json", cache.path)[1])
    (only,) = told["verified"]
    assert (only["file"], only["damages"], only["canary"]) == (str(cache.path), [], None)
    assert only["bytes"] > cache.splits["train"].stored["features"].n_bytes
    assert views.path.name in out


def test_verify_names_every_damage_and_looks_at_all_files(
    embed: Embed, embed_blocks: Embed, folder: Path, run: Run
) -> None:
    sound = embed(folder).run().cache
    torn = embed_blocks(noise(140)).run().cache
    flip(torn, "train", "features", 40)  # blocks are of 32 rows
    flip(torn, "train", "features", 80)
    flip(torn, "train", "features", 139)
    flip(torn, "test", "ids", 3)
    sound.path.with_name("junk.h5").write_bytes(b"junk")
    status, out, err = run("cache", "verify", "--json", "--no-canary")
    assert status == 1
    assert err.count("cache: error:") == 1
    assert "2 of 3 caches are damaged or have drifted" in err
    told = {Path(each["file"]).name: each["damages"] for each in json.loads(out)["verified"]}
    assert told[torn.path.name] == [
        "/train/features, rows 32 to 95, do not match their checksum",
        "/train/features, rows 128 to 139, do not match their checksum",
        "/test/ids, rows 0 to 11, do not match their checksum",
    ]
    assert told[sound.path.name] == []
    assert "cut off, damaged, or no feature cache" in told["junk.h5"][0]
    assert run("cache", "verify", sound.path.name, "--no-canary")[0] == 0


def test_verify_tells_drift(embed: Embed, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    embed(folder).run()
    original = Embedding.canary

    def drifted(self: Embedding) -> object:
        canary = original(self)
        return replace(canary, features=canary.features * np.float16(1.01))

    monkeypatch.setattr(Embedding, "canary", drifted)
    status, out, err = run("cache", "verify")
    assert status == 1
    assert "DRIFTED: features of" in out
    assert "1 of 1 caches are damaged or have drifted" in err


def test_verify_says_where_the_canary_cannot_be_checked(
    embed: Embed, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = embed(folder).run().cache
    monkeypatch.setattr(
        "featcache.models.backbones.load_backbone", lambda *_, **__: (_ for _ in ()).throw(UserError("no network here"))
    )
    status, out, _ = run("cache", "verify")
    assert status == 0
    assert "CANARY NOT CHECKED: no network here" in out
    monkeypatch.undo()
    other = {**cache.encoder, "preprocessing": {**cache.encoder["preprocessing"], "decoder": "another"}}
    with pytest.raises(
        UserError, match="another one: preprocessing.decoder is simplejpeg and pillow today, not another"
    ):
        todays_canary(replace(cache, encoder=other), device=torch.device("cpu"))
    filed = {**cache.encoder, "weights": {"sha256": "0"}}
    named = {**cache.provenance, "weights": "ResNet18_Weights./etc/passwd"}
    with pytest.raises(UserError, match=r"came from a file, ResNet18_Weights./etc/passwd: give it by --weights FILE"):
        todays_canary(replace(cache, encoder=filed, provenance=named), device=torch.device("cpu"))


def test_weights_that_came_from_a_file_are_asked_for(embed: Embed, folder: Path, run: Run, tmp_path: Path) -> None:
    for seed in (0, 1):
        state = load_backbone(BACKBONE, weights="none", seed=seed).staged.model.state_dict()
        torch.save(state, tmp_path / f"{seed}.pth")
    backbone = load_backbone(BACKBONE, weights=str(tmp_path / "0.pth"), image_size=32)
    embed(folder, backbone=backbone).run()
    assert "CANARY NOT CHECKED: its weights came from a file, 0.pth: give it by --weights" in run("cache", "verify")[1]
    assert "canary agrees" in run("cache", "verify", "--weights", tmp_path / "0.pth")[1]
    assert "another one: weights.sha256 is" in run("cache", "verify", "--weights", tmp_path / "1.pth")[1]


def test_diff_of_the_same_and_of_other_rows(embed: Embed, folder: Path, run: Run) -> None:
    a = embed(folder).run().cache
    copy = a.path.with_name("copy.h5")
    shutil.copy(a.path, copy)
    status, out, _ = run("cache", "diff", a.path, "copy.h5")
    assert status == 0
    assert "same encoder and rows" in out
    assert "train: 40 common rows (same id and content); the features of 40 agree to the bit" in out

    (folder / "train/red/003.jpg").write_bytes((folder / "test/red/003.jpg").read_bytes())
    (folder / "train/red/004.jpg").rename(folder / "train/red/new.jpg")
    dataset = load_dataset(str(folder))
    labels = dataset.splits["test"].labels.copy()
    labels[0] = 1 - labels[0]
    test = replace(dataset.splits["test"], labels=labels)
    b = embed(replace(dataset, splits={**dataset.splits, "test": test}), storage="float32").run().cache
    out = run("cache", "diff", a.path, b.path)[1]
    assert "encoder: storage is float16 in A, float32 in B" in out
    assert "same encoder and rows" not in out
    told = json.loads(run("cache", "diff", a.path, b.path, "--json")[1])
    assert told["encoder"] == {"storage": ["float16", "float32"]}
    train, test_told = told["splits"]["train"], told["splits"]["test"]
    assert train["only_a"] == ["train/red/004.jpg"]
    assert train["only_b"] == ["train/red/new.jpg"]
    assert train["other_content"] == ["train/red/003.jpg"]
    assert (train["common"], train["compared"]) == (38, 38)
    assert 0 < train["largest"] < 2e-3  # float16's rounding
    assert test_told["other_label"] == [dataset.splits["test"].ids[0]]
    assert "only in A" in out
    assert "train/red/004.jpg" in out


def test_diff_measures_the_features(embed: Embed, folder: Path, run: Run) -> None:
    a = embed(folder, storage="float32").run().cache
    other = embed(folder, storage="float32", cache_dir=folder.parent / "other")
    original = TrunkPasses.stored
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrunkPasses, "stored", lambda self, features: original(self, features) * np.float32(1.5))
        b = other.run().cache
    told = json.loads(run("cache", "diff", b.path, a.path, "--json")[1])
    assert told["splits"]["train"]["largest"] == pytest.approx(0.5, rel=1e-5)
    assert told["same"] is True


def test_what_files_hold_is_spelled_out(embed: Embed, folder: Path, run: Run) -> None:
    hostile = "train/red\x1b[2J\r\u202egpj.x"
    dataset = load_dataset(str(folder))
    train = dataset.splits["train"]
    train = replace(train, ids=(hostile, *train.ids[1:]))
    dataset = replace(dataset, class_names=("green\x07", "re\x9bd"), splits={**dataset.splits, "train": train})
    (folder / "train/green/000.jpg").write_text("no picture")
    cache = embed(dataset).run().cache
    plain = embed(folder).run().cache
    for arguments in (["info", cache.path], ["diff", cache.path, plain.path], ["ls"], ["verify", "--no-canary"]):
        status, out, err = run("cache", *arguments)
        assert status == 0
        assert all(c.isprintable() or c == "\n" for c in out + err), arguments
    assert r"train/red\x1b[2J\r\u202egpj.x" in run("cache", "info", cache.path)[1]
    assert printable.printable("plain é 字") == "plain é 字"


def test_wrong_usage_is_told_in_one_line(run: Run) -> None:
    for arguments, words in (
        ([], "the following arguments are required: ACTION"),
        (["list"], "invalid choice: 'list'"),
        (["ls", "--jsn"], "unrecognized arguments: --jsn"),
        (["export", "x.h5"], "the following arguments are required: OUT"),
    ):
        status, _, err = run("cache", *arguments)
        assert status == 2
        assert words in err
        assert err.count("\n") == 1
    assert run("cache", "verify")[0] == 1
    status, out, _ = run("cache", "--help")
    assert status == 0
    assert cache_command.DESCRIPTION in out
