"""bin/cache gc: what it names, what it deletes, and what it leaves alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
from conftest import BACKBONE
from making import age, files, flip, interrupted, noise

from featcache import locks
from featcache.embedding import Embedding
from featcache.locks import building

Embed = Callable[..., Embedding]
Run = Callable[..., tuple[int, str, str]]

FLAGS = ["--backbone", BACKBONE, "--weights", "none", "--image-size", "32"]
DAY = 86400


def test_gc_spares_what_may_be_of_use(embed: Embed, folder: Path, run: Run) -> None:
    cache = embed(folder).run().cache
    features = cache.path.parent
    partial = interrupted(embed(noise(700)), 520)
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


def test_gc_names_first_and_deletes_when_told(embed: Embed, run: Run) -> None:
    partial = interrupted(embed(noise(700)), 520)
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
        f".{embed(noise(700)).path.name}.{locks.host()}.lock": True,
    }
    assert files(features) == {foreign.name}
    assert "deleted features/.noise" in run("cache", "gc", "--delete", "--older-than", 2)[1]
    assert files(features) == set()
    assert run("cache", "gc")[1] == "features: nothing to delete\n"
    assert run("cache", "gc", "--older-than", "-1")[0] == 2


def test_gc_leaves_what_is_being_built(embed: Embed, run: Run) -> None:
    work = embed(noise(700))
    partial = interrupted(work, 520)
    age(partial, 30)
    before = files(partial.parent)
    with building(work.path):
        assert "nothing to delete" in run("cache", "gc", "--delete")[1]
    assert files(partial.parent) == before
    assert work.run().rows_reused == 512


def test_gc_deletes_no_file_that_changed_or_is_in_use_since_it_was_judged(embed: Embed) -> None:
    from featcache.upkeep.garbage import delete, find_garbage

    work = embed(noise(700))
    partial = interrupted(work, 520)
    age(partial, 30)
    garbage = {each.path: each for each in find_garbage(partial.parent)}[partial]
    with building(work.path):
        assert delete(garbage) == "a process is building that cache"
    age(partial, 0)
    assert delete(garbage) == "it changed meanwhile"
    assert partial.exists()


def test_gc_of_damaged_caches(embed: Embed, folder: Path, run: Run) -> None:
    sound = embed(folder).run().cache
    torn = embed(noise(300)).run().cache
    flip(torn, "train", "features", 299)
    cut = embed(folder, storage="float32").run().cache
    cut.path.write_bytes(cut.path.read_bytes()[:5000])
    assert f"features/{torn.path.name}" not in run("cache", "gc")[1]
    out = run("cache", "gc", "--damaged", "--delete")[1]
    assert "damaged: /train/features, rows 256 to 299" in out
    assert files(sound.path.parent) == {sound.path.name}


def test_gc_of_superseded_caches(embed: Embed, run: Run) -> None:
    small = embed(noise(100)).run().cache
    embed(noise(50, "half")).run()
    whole = embed(noise(300)).run().cache
    again = embed(noise(300, "again")).run().cache  # the same images, newer
    other = embed(noise(100), storage="float32").run().cache
    images = embed(noise(200, "images", seed=1)).run().cache
    out = run("cache", "gc", "--superseded")[1]
    assert f"{small.path.name} (" in out
    assert "all its 112 images are in " in out
    assert run("cache", "gc", "--superseded", "--delete")[0] == 0
    assert files(whole.path.parent) == {again.path.name, other.path.name, images.path.name}
    flip(again, "train", "features", 0)  # no longer one to rely on
    small = embed(noise(100), cut=2).run().cache
    larger = embed(noise(300), cut=2).run().cache
    flip(larger, "train", "features", 0)
    assert f"features/{small.path.name}" not in run("cache", "gc", "--superseded")[1]
