"""Small real things: folders of pictures that Pillow drew, and caches that bin/embed's own code made of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
import torchvision
from forking import kill_all
from PIL import Image
from selecting import Digits, some_digits
from serving import Served, make_runs
from threadpoolctl import threadpool_limits

from featcache.cache.cache_file import Cache
from featcache.commands import cache as cache_command
from featcache.commands import console
from featcache.commands import embed as embed_command
from featcache.embedding.job import Embedding
from featcache.models.backbones import Backbone, load_backbone
from featcache.sources.image_sets import ImageDataset, load_dataset
from finetune import finetune_command, training
from finetune.comparison import compare_command
from heads import fit_head_command
from heads.audit import audit_command
from heads.serving import export_command, predict_command

#: A residual network of timm's with 373,658 parameters and the stages of ResNet-18, which has thirty times as many.
BACKBONE = "timm/test_resnet"
#: Flags that make embedding quick: a real backbone with random weights, on few and small images.
QUICK = ["--backbone", BACKBONE, "--weights", "none", "--image-size", "32", "--per-class", "6"]

#: Flags that embed in blocks of 8 rows (a vector has 192 bytes, and a block 256 KiB), by one engine.
BLOCKS = ["--backbone", BACKBONE, "--weights", "none", "--image-size", "64", "--batch-size", "8"]
BLOCKS += ["--cut", "layer1", "--storage", "float32", "--engine", "eager", "--precision", "fp32"]

#: Work this small runs faster without threads that wait for one another, also in the processes that tests start.
torch.set_num_threads(1)
threadpool_limits(1)
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

ROOT = Path(__file__).resolve().parents[1]
HYMENOPTERA = Path(__file__).resolve().parents[2] / "shared" / "data" / "hymenoptera_data"


@pytest.fixture(autouse=True)
def no_forks_left() -> Iterator[None]:
    yield
    kill_all()


@pytest.fixture
def a_checkpoint_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes."""
    monkeypatch.setattr(training, "CHECKPOINT_SHARE", float("inf"))


@pytest.fixture(autouse=True, scope="session")
def signals_are_pytests() -> Iterator[None]:
    """SIGTERM ends pytest, not the command that a test happens to call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "_terminated_as_interrupted", nullcontext)
        yield


@pytest.fixture(autouse=True, scope="session")
def own_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is remembered of accepted files and of digests stays out of the user's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("memory")))
        yield


@pytest.fixture
def hymenoptera() -> Path:
    """Ants and bees: real photographs, where they are at hand."""
    if not HYMENOPTERA.is_dir():
        pytest.skip(f"the hymenoptera photographs are not at {HYMENOPTERA}")
    return HYMENOPTERA


def draw(path: Path, *, hue: int, seed: int, size: tuple[int, int] = (48, 40)) -> None:
    """A noisy picture of one colour, saved in the format that its name asks for."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 120, (size[1], size[0], 3))
    pixels[..., hue] += 120
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes ``root/<split>/<class>/<n>.jpg``, or ``root/<class>/<n>.jpg`` for the split ``''``."""

    def make(counts: dict[str, dict[str, int]], name: str = "pictures") -> Path:
        root = tmp_path / name
        for split, classes in counts.items():
            for hue, (class_name, count) in enumerate(classes.items()):
                (root / split / class_name).mkdir(parents=True)
                for i in range(count):
                    draw(root / split / class_name / f"{i:03}.jpg", hue=hue, seed=crc32(f"{split} {hue} {i}".encode()))
        return root

    return make


@pytest.fixture
def folder(make_folder: Callable[..., Path]) -> Path:
    """Two classes, 20 training and 6 test pictures each."""
    return make_folder({"train": {"red": 20, "green": 20}, "test": {"red": 6, "green": 6}})


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    """With random weights, on 32-pixel squares: the real thing, small enough for every test."""
    return load_backbone(BACKBONE, weights="none", image_size=32)


@pytest.fixture
def embed(tmp_path: Path, backbone: Backbone) -> Callable[..., Embedding]:
    """The work of embedding a folder or data set into ``tmp_path/features``."""

    def make(source: Path | ImageDataset, **settings: object) -> Embedding:
        dataset = load_dataset(str(source)) if isinstance(source, Path) else source
        values: dict[str, object] = {
            "backbone": backbone,
            "cache_dir": tmp_path / "features",
            "batch_size": 8,
            "device": torch.device("cpu"),
        }
        return Embedding(dataset=dataset, **{**values, **settings})

    return make


@pytest.fixture
def embed_blocks(embed: Callable[..., Embedding], backbone: Backbone) -> Callable[..., Embedding]:
    """The same in blocks of 32 rows: each has 8 KiB, the maps of the first layer in float32."""
    return partial(embed, cut=backbone.staged.cut_after("layer1"), storage="float32")


@pytest.fixture
def cache(folder: Path, embed: Callable[..., Embedding]) -> Cache:
    """The folder's sealed cache of vectors: 40 training and 12 test rows, each split in one block."""
    return embed(folder).run().cache


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in an empty folder; gives its exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    mains = {
        "embed": embed_command.main,
        "fit-head": fit_head_command.main,
        "finetune": finetune_command.main,
        "export": export_command.main,
        "cache": cache_command.main,
        "predict": predict_command.main,
        "compare": compare_command.main,
        "audit": audit_command.main,
    }

    def call(command: str, *arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = mains[command]([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse's way
            status = int(end.code or 0)
        return status, *capsys.readouterr()

    return call


def two_classes(root: Path, *, train: int = 4) -> Path:
    for split, count in (("train", train), ("test", 3)):
        for label, name in enumerate("ab"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.full((3, 12, 12), 99 * label + i, np.uint8)
                torchvision.io.write_png(torch.from_numpy(pixels), str(root / split / name / f"{i}.png"))
    return root


@pytest.fixture(scope="module")
def digits() -> Digits:
    """600 of scikit-learn's, to select heads on."""
    return some_digits()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Pictures, caches and runs, made once."""
    return make_runs(tmp_path_factory.mktemp("served"), draw)


@pytest.fixture
def predict(served: Served, run: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    """The command beside those caches and runs."""

    def call(*arguments: object) -> tuple[int, str, str]:
        return run("predict", f"--cache-dir={served.cache_dir}", f"--runs-dir={served.runs_dir}", *arguments)

    return call


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a dask scheduler with two workers, each a process of its own."""
    pytest.importorskip("distributed")
    folder = tmp_path_factory.mktemp("cluster")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PYTHONWARNINGS": "ignore"}
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> Path:
        told = folder / f"{len(started)}.txt"
        command = [sys.executable, "-m", "dask", *arguments, "--no-dashboard"]
        with told.open("wb") as file:
            started.append(subprocess.Popen(command, cwd=folder, stderr=file, stdout=file, env=environment))
        return told

    try:
        address = said(start("scheduler", "--host", "127.0.0.1", "--port", "0"), r"Scheduler at:\s+(tcp://\S+)")
        workers = [start("worker", address, "--nthreads", "1", "--no-nanny") for _ in range(2)]
        for told in workers:
            said(told, r"(Starting established connection to|Registered to:)")
        yield address
    finally:
        for process in reversed(started):
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def said(told: Path, pattern: str) -> str:
    """Wait until a process tells this."""
    end = time.monotonic() + 60
    while not (found := re.search(pattern, told.read_text())):
        assert time.monotonic() < end, told.read_text()
        time.sleep(0.02)
    return found[1]
