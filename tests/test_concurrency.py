"""Many readers and builders at once: nobody sees half a cache, all read the same rows, and no finished run is lost."""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np
import pytest
from conftest import QUICK
from forking import Forked, fork_command
from loading import read_by_workers
from making import numbered
from stored_features import total

from featcache.cache.cache_file import Cache
from featcache.common import locks
from featcache.common.errors import CacheError
from featcache.common.locks import building
from featcache.embedding.job import Embedding
from heads import publishing
from heads.runs import read_run

Run = Callable[..., tuple[int, str, str]]
Embed = Callable[..., Embedding]


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_data_loader_workers_read_it(cache: Cache, context: str) -> None:
    """Spawned workers, each of which imports torch, are slow; forked ones are their quicker twin."""
    process = Forked(read_by_workers, cache.path, context, folder=cache.path.parent)
    assert process.wait(timeout=100) == 0, process.communicate(timeout=10)


def test_joblib_processes_read_it(cache: Cache) -> None:
    split = cache.splits["train"]
    chunks = np.array_split(np.random.default_rng(0).permutation(len(split)), 5)
    sums = joblib.Parallel(n_jobs=2, backend="loky", timeout=200)(joblib.delayed(total)(split, rows) for rows in chunks)
    assert sums == [total(split, rows) for rows in chunks]


def test_threads_read_it(cache: Cache) -> None:
    expected, results = cache.splits["train"].load(), []
    split = Cache.open(cache.path).splits["train"]
    threads = [threading.Thread(target=lambda: results.append(split.load())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(result, expected) for result in results)
    assert len(results) == 8


def test_what_is_sent_to_another_process_is_small(cache: Cache) -> None:
    cache.splits["train"].load()
    assert cache.splits["train"].ids
    assert len(pickle.dumps(cache.splits["train"])) < 3000


def test_a_file_that_was_replaced_meanwhile_is_not_mistaken_for_it(cache: Cache) -> None:
    sent = pickle.dumps(cache.splits["train"])
    data = cache.path.read_bytes()
    expected = cache.splits["train"].load()
    cache.path.unlink()
    (cache.path.parent / "keeps the inode").write_bytes(b"")
    cache.path.write_bytes(data + bytes(4096))
    with pytest.raises(CacheError, match="was replaced since it was opened; open it again"):
        pickle.loads(sent).load()
    np.testing.assert_array_equal(cache.splits["train"].load(), expected)  # who had it open reads on


def watch() -> None:
    """Open what there is, until told to stop."""
    print("ready")
    end = time.monotonic() + 100
    while not Path("stop").exists() and time.monotonic() < end:
        for path in Path("features").glob("*.h5"):
            assert not Cache.open(path).damages()
            print("opened")


def test_readers_never_see_half_a_file(embed_blocks: Embed, tmp_path: Path) -> None:
    (tmp_path / "features").mkdir()
    reader = Forked(watch, folder=tmp_path)
    reader.stdout_line("ready")
    for count in (40, 50, 60, 70):
        embed_blocks(numbered(np.arange(count))).run()
    reader.stdout_line("opened")
    (tmp_path / "stop").touch()
    assert reader.wait(timeout=60) == 0, reader.communicate()


def test_a_file_in_the_making_is_read_while_it_is_written(embed: Embed, cache: Cache) -> None:
    path = cache.path.with_name(".x.h5.0badc0de.partial")
    shutil.copy(cache.path, path)
    opened = Cache.open_unsealed(path)
    for each in opened.splits["train"].stored.values():
        each.file.close()
    with path.open("r+b") as file:
        file.write(file.read(0))
    path.touch()
    np.testing.assert_array_equal(opened.splits["train"].load(), cache.splits["train"].load())


def test_many_open_caches_hold_no_descriptors(cache: Cache) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    opened = [Cache.open(cache.path) for _ in range(50)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert all(len(each.splits["train"].load()) == 40 for each in opened)


def test_a_lock_that_was_deleted_by_another_is_taken_anew(tmp_path: Path) -> None:
    path = tmp_path / "features" / "x.h5"
    inside, overlaps = [], []

    def build() -> None:
        with building(path):
            inside.append(1)
            overlaps.append(len(inside))
            time.sleep(0.3)
            inside.pop()

    with building(path):
        waiting = threading.Thread(target=build)
        waiting.start()
        time.sleep(0.3)
        for lock in locks._locks(path):
            lock.unlink()  # as bin/cache gc does
    others = [threading.Thread(target=build) for _ in range(3)]
    for thread in others:
        thread.start()
    for thread in (waiting, *others):
        thread.join()
    assert overlaps == [1, 1, 1, 1]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to build the shim with")
def test_a_real_build_where_flock_is_refused(tmp_path: Path) -> None:
    """Its quicker twin is `test_without_locks_in_the_folder_builders_are_still_kept_apart`."""
    source = tmp_path / "shim.c"
    source.write_text("#include <errno.h>\nint flock(int fd, int how) { errno = ENOLCK; return -1; }\n")
    shim = tmp_path / "shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, source], check=True, timeout=100)
    command = [sys.executable, Path(__file__).parents[1] / "bin" / "embed", *QUICK]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "LD_PRELOAD": str(shim)},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "features").glob("*.h5")
    assert not Cache.open(path).damages()


def test_without_locks_in_the_folder_builders_are_still_kept_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, path = fcntl.flock, tmp_path / "features" / "x.h5"

    def refusing(file: int, operation: int) -> None:
        if str(Path(f"/proc/self/fd/{file}").resolve()).startswith(str(path.parent)):
            raise OSError(errno.ENOLCK, "No locks available")
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", refusing)
    order: list[str] = []
    entered = threading.Event()

    def second() -> None:
        with building(path, on_wait=lambda holder: entered.set()):
            order.append("second")

    with building(path):
        thread = threading.Thread(target=second)
        thread.start()
        assert entered.wait(timeout=10)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


@pytest.mark.parametrize("flags", [("--report",), ("--fractions", "0.5,1")], ids=str)
def test_a_name_that_another_process_takes_meanwhile(
    run: Run, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, str]
) -> None:
    few = ("--val-fraction", "0.2")

    def end_first(name: str) -> None:
        def find_spec(module: str) -> object:  # which is asked once the head or the curve is finished
            (tmp_path / "runs" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "runs" / name / "other").touch()
            return importlib.util.find_spec(module)

        monkeypatch.setattr(publishing, "find_spec", find_spec)

    number = f"{cache.dataset}-timm_test_resnet-ridge{'-curve' if '--fractions' in flags else ''}"
    end_first(f"{number}-1")
    status, out, err = run("fit-head", "--clf", "ridge", *few, *flags)
    assert status == 0, err
    assert f"runs/{number}-2" in out
    assert "WARNING: another process" not in out
    end_first("mine")
    status, out, err = run("fit-head", "--clf", "ridge", "--name", "mine", *few, *flags)
    assert status == 0, err
    assert "WARNING: another process has made runs/mine meanwhile; this one's work is kept as runs/mine-1" in out
    kept = {folder.name: {path.name for path in folder.iterdir()} for folder in (tmp_path / "runs").iterdir()}
    assert kept.pop(f"{number}-1") == kept.pop("mine") == {"other"}
    assert kept.keys() == {f"{number}-2", "mine-1"}
    assert all({"run.json", "curve.json"} & files for files in kept.values())


@pytest.mark.slow
def test_three_commands_at_once_are_three_runs(run: Run, tmp_path: Path) -> None:
    """FEATCACHE_ROUNDS=20 makes 60 runs; the quick one is `test_a_name_that_another_process_takes_meanwhile`."""
    run("embed", *QUICK)
    count = 3 * int(os.environ.get("FEATCACHE_ROUNDS", "1"))
    for first in range(0, count, 3):
        seeds = range(first, first + 3)
        started = [fork_command("fit-head", "--clf", "ridge", "--seed", seed, folder=tmp_path) for seed in seeds]
        assert [process.communicate(timeout=200)[1] for process in started] == [""] * 3
    assert sorted(read_run(folder).record["seed"] for folder in (tmp_path / "runs").iterdir()) == list(range(count))
