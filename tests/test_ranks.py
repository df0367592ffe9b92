"""Embedding by the processes that torchrun starts: the same bytes as one process's, whoever dies on the way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import BACKBONE
from forking import GO_ON, Forked, embed_slowly, fork_command, fork_ranks
from making import contents, rows_that_count, wait_for_rows

from featcache.build.block_assignment import share_of
from featcache.build.builder import CacheBuilder
from featcache.cache.cache_file import Cache
from featcache.cache.canary import Canary
from featcache.commands import embed as embed_command
from featcache.common import locks
from featcache.common.errors import CacheError, UserError
from featcache.common.ranks import ALONE, Ranks
from featcache.embedding.job import Embedding

Run = Callable[..., tuple[int, str, str]]
Process = subprocess.Popen[str] | Forked

ROOT = Path(__file__).resolve().parents[1]
# Blocks of 14 rows: some ten for each rank.
SMALL = ["--backbone", BACKBONE, "--weights", "none", "--image-size", "48", "--cut", "layer1"]
SMALL += ["--storage", "float32", "--batch-size", "8", "--engine", "eager", "--precision", "fp32"]
#: Of the digits, so that there are blocks left when some are done.
SOME = [*SMALL, "--limit", "train=200,test=40"]


def start(folder: Path, *command: object, **variables: object) -> subprocess.Popen[str]:
    """Python, with one thread as in this process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in variables.items()}}
    arguments = [sys.executable, *map(str, command)]
    pipe = subprocess.PIPE
    return subprocess.Popen(arguments, cwd=folder, stdout=pipe, stderr=pipe, text=True, env=environment)


def torchrun(folder: Path, n_ranks: int, *flags: object) -> subprocess.Popen[str]:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", n_ranks)
    return start(folder, *launcher, ROOT / "bin/embed", *flags)


def finish_ranks(folder: Path, n_ranks: int, *flags: str) -> dict[str, object]:
    """Let ranks embed; gives the object that the first prints, the others nothing."""
    ranks = fork_ranks(folder, n_ranks, embed_command.main, [*flags, "--json"])
    (first, *others) = [rank.communicate(timeout=200) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * n_ranks, [first, *others]
    assert others == [("", "")] * (n_ranks - 1)
    return json.loads(first[0])


def pid_of_rank(launcher: subprocess.Popen[str], rank: int) -> int:
    for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in environment:
            return int(pid)
    raise AssertionError(f"no rank {rank}")


def cache_in(folder: Path) -> Cache:
    (path,) = (folder / "features").glob("*.h5")
    return Cache.open(path)


@pytest.fixture(scope="module")
def by_one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Some digits, by one process."""
    folder = tmp_path_factory.mktemp("one")
    assert embed_command.main([*SOME, "--cache-dir", str(folder / "features")]) == 0
    return contents(cache_in(folder))


@pytest.fixture
def pictures(make_folder: Callable[..., Path]) -> Path:
    """200 pictures, of which 41 are none; most of these fall to one rank of three, too many for its share of slots."""
    root = make_folder({"train": {"red": 50, "green": 50}, "test": {"red": 50, "green": 50}})
    (root / "train/green/017.jpg").write_bytes(b"no picture")
    for i in range(10, 50):
        (root / f"test/red/{i:03}.jpg").write_bytes(b"nor this")
    return root


@pytest.mark.parametrize(
    "launch",
    [
        lambda folder, flags: fork_ranks(folder, 3, embed_command.main, flags),
        pytest.param(lambda folder, flags: [torchrun(folder, 3, *flags)], marks=pytest.mark.slow),
    ],
    ids=["forked", "torchrun"],
)
def test_three_ranks_make_the_bytes_of_one_process(
    pictures: Path, tmp_path: Path, run: Run, launch: Callable[[Path, list[str]], Sequence[Process]]
) -> None:
    """By torchrun it is slow; forked ranks, which have the variables that torchrun sets, are its quicker twin."""
    flags = ["--dataset", str(pictures), "--workers", "1", *SMALL, "--json"]
    # a former cache holds some rows of most blocks, and all of others
    assert run("embed", *flags, "--fraction", "0.3", "--limit", "test=60")[0] == 0
    shutil.copytree(tmp_path / "features", tmp_path / "three/features")
    by_one = json.loads(run("embed", *flags)[1])
    processes = launch(tmp_path / "three", flags)
    (out, err), *others = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), (err, others)
    by_three = json.loads(out)  # one object and nothing else
    for key in ("cache", "rows", "rows_reused", "rows_damaged"):
        assert by_three[key] == by_one[key]
    assert by_three["rows_damaged"] == 41
    assert 50 < by_three["rows_reused"] <= 90
    cache, expected = Cache.open(tmp_path / "three" / by_three["cache"]), Cache.open(tmp_path / by_one["cache"])
    assert contents(cache) == contents(expected)
    assert list(cache.splits["train"].errors) == ["train/green/017.jpg"]
    assert list(cache.splits["test"].errors) == [f"test/red/{i:03}.jpg" for i in range(10, 50)]
    assert sum(cache.provenance["hardware"]["ranks"].values()) == 3
    assert cache.provenance["threads"] == 1


def test_a_rank_that_is_killed_costs_what_did_not_count(by_one: dict[str, bytes], tmp_path: Path) -> None:
    first, second = fork_ranks(tmp_path, 2, embed_slowly, SOME)
    wait_for_rows(tmp_path, first)
    second.kill()
    (tmp_path / GO_ON).touch()
    _, err = first.communicate(timeout=60)
    assert first.returncode == 1
    (told,) = [line for line in err.splitlines() if line.startswith("embed: error: ")]
    assert told.startswith("embed: error: rank 0: ")
    assert told.endswith("what is done is kept: run the same command to go on")
    done = rows_that_count(tmp_path)
    assert 0 < done < 240
    assert finish_ranks(tmp_path, 3, *SOME)["rows_reused"] == done
    assert contents(cache_in(tmp_path)) == by_one
    assert finish_ranks(tmp_path, 2, *SOME)["rows_reused"] == 240


def test_a_rank_that_outlives_its_job_is_waited_for(by_one: dict[str, bytes], tmp_path: Path) -> None:
    first, stale = fork_ranks(tmp_path, 2, embed_slowly, SOME)
    wait_for_rows(tmp_path, first)
    stale.send_signal(signal.SIGSTOP)
    first.kill()
    first.wait(timeout=60)
    done = rows_that_count(tmp_path)
    try:
        later = fork_command("embed", *SOME, folder=tmp_path)
        assert later.stdout_line("waiting for it").startswith("another process is building ")
        time.sleep(0.5)
        assert rows_that_count(tmp_path) == done  # nobody writes
    finally:
        (tmp_path / GO_ON).touch()
        stale.send_signal(signal.SIGCONT)  # it does all of its share, then misses the first rank
    assert "embed: error: rank 1: another rank ended" in stale.communicate(timeout=60)[1]
    told, err = later.communicate(timeout=100)
    assert later.returncode == 0, err
    kept = re.search(r"([\d,]+) were there already", told)
    assert kept
    assert int(kept[1].replace(",", "")) >= 200 - 8 * 14 + 40  # its share: train from its ninth block on, and test
    assert contents(cache_in(tmp_path)) == by_one


def embed_differently() -> int:
    """bin/embed on a rank whose features are larger by one per cent of its number."""
    canary = Embedding.canary

    def drifted(self: Embedding) -> Canary:
        made = canary(self)
        return replace(made, features=made.features * (1 + 0.01 * int(os.environ["RANK"])))

    Embedding.canary = drifted  # type: ignore[method-assign]
    return embed_command.main(SMALL)


def test_a_rank_that_makes_other_features_is_refused_by_name(tmp_path: Path) -> None:
    ranks = fork_ranks(tmp_path, 2, embed_differently)
    (_, first), (_, other) = (rank.communicate(timeout=100) for rank in ranks)
    assert [rank.returncode for rank in ranks] == [1, 1]
    (line,) = other.splitlines()
    assert line.startswith("embed: error: rank 1: its device (cpu, ")
    assert "makes other features than the first rank's: features of " in line
    assert first.splitlines()[-1].startswith("embed: error: rank 0: another rank ended")
    assert not list(tmp_path.glob("features/*.h5"))


def exchange() -> None:
    """What one of two ranks sends and expects."""
    ranks = Ranks.of_environment()
    with ranks.joined():
        assert ranks.share({"é": [1, None, ranks.rank]}) == {"é": [1, None, 0]}
        assert ranks.gather("x" * 5 * ranks.rank) == ["", "xxxxx"]
        rows = ranks.gather_rows(np.full((2 + ranks.rank, 3), ranks.rank, np.uint8))
        assert rows.tolist() == [[0] * 3] * 2 + [[1] * 3] * 3
        assert ranks.gather_rows(np.zeros((0, 16), np.uint8)).shape == (0, 16)
        ranks.require_same(7, "numbers")
        with ranks.in_turn(), Path("order").open("a") as file:
            file.write(str(ranks.rank))
        ranks.barrier()
        assert Path("order").read_text() == "01"
        differs = pytest.raises(UserError, match="^this rank's numbers differ from the first one's: ")
        with nullcontext() if ranks.is_first else differs:
            ranks.require_same(ranks.rank, "numbers")


def test_what_ranks_tell_one_another(tmp_path: Path) -> None:
    ranks = fork_ranks(tmp_path, 2, exchange)
    assert [rank.communicate(timeout=100) for rank in ranks] == [("", "")] * 2
    assert [rank.returncode for rank in ranks] == [0, 0]


def test_one_process_tells_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    with ALONE.joined(), ALONE.in_turn():
        ALONE.barrier()
        assert ALONE.share([1]) == [1]
        assert ALONE.gather(2) == [2]
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "host", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert Ranks.of_environment() == Ranks(rank=1, size=4, local_rank=1)
    for name, value in {"RANK": "4", "WORLD_SIZE": "some", "LOCAL_RANK": "-1"}.items():
        with monkeypatch.context() as odd:
            odd.setenv(name, value)
            assert Ranks.of_environment() == ALONE


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_shares_cover_all_blocks_once_and_cost_alike(size: int) -> None:
    rng = np.random.default_rng(size)
    blocks = {"train": sorted(rng.choice(500, 300, replace=False).tolist()), "val": [], "test": [0, 1, 5]}
    weights = {name: rng.choice([16, 16_000], 500) for name in blocks}
    shares = [share_of(blocks, weights, Ranks(rank=rank, size=size)) for rank in range(size)]
    for name, numbers in blocks.items():
        taken = [block for share in shares for block in sorted(share[name])]
        assert taken == numbers  # in order: the shares are contiguous
    costs = [sum(int(weights[name][list(share[name])].sum()) for name in blocks) for share in shares]
    assert max(costs) - min(costs) <= 2 * 16_000


def test_nobody_joins_a_file_that_a_later_job_has(embed: Callable[..., Embedding], folder: Path) -> None:
    work = embed(folder)
    (work.cache_dir).mkdir()
    builder = CacheBuilder.create_or_resume(work.path, work.plan, work._provenance(), work.canary())
    with builder.partial.open("rb") as late, builder.partial.open("rb") as later:
        locks.join(late.fileno(), builder.partial)  # of the same job: it is shared
        waited: list[str] = []
        thread = threading.Thread(target=locks.take_over, args=(later.fileno(),), kwargs={"on_wait": waited.append})
        thread.start()
        time.sleep(0.3)
        assert thread.is_alive()
        assert waited == [""]
        builder.close(seconds=0)
        time.sleep(0.3)
        assert thread.is_alive()
        late.close()
        thread.join(timeout=10)
    with builder.partial.open("rb") as later, builder.partial.open("rb") as too_late:
        locks._lock_alone(later.fileno(), waited.append, holder=str)  # as it is while ``take_over`` waits no more
        with pytest.raises(CacheError, match="another job goes on with"):
            locks.join(too_late.fileno(), builder.partial)
