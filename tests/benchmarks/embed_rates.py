"""Embedding with ResNet-18 beside the notebook way, and beside its own model and input alone; all in one run.

    python tests/benchmarks/embed_rates.py arrays --count 2000
    python tests/benchmarks/embed_rates.py files --count 1000 --folder ../shared/data/hymenoptera_data
    python tests/benchmarks/embed_rates.py arrays --count 100000 --backbone vit_b_16 --device cuda

Prints a Markdown table. Variants take turns; figures are medians over the rounds; set-up is told beside the rate, not
in it. Weights are random, which speed does not depend on. The notebook way is measured for ResNet-18 on a CPU.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from featcache.commands.embed import default_workers
from featcache.common.machine import choose_device, keep_freed_memory
from featcache.embedding.job import Embedding
from featcache.engines.backends import unavailable
from featcache.models.backbones import load_backbone
from featcache.sources.batches import BatchReader
from featcache.sources.image_sets import ArrayImages, FileImages, ImageDataset, Split

NOTEBOOK = Path(__file__).with_name("notebook_way.py")
WAYS = (
    ("eager", "fp32"),
    ("eager", "bf16"),
    ("compile", "bf16"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
)


def arrays(count: int, scratch: Path) -> tuple[ImageDataset, Path]:
    """32-pixel colour images in memory, and in a file."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    ids = tuple(str(i) for i in range(count))
    np.save(scratch / "pixels.npy", pixels)
    return divided(Split(ids, np.zeros(count, np.int64), ArrayImages(pixels))), scratch / "pixels.npy"


def files(count: int, folder: Path, scratch: Path) -> tuple[ImageDataset, Path]:
    """So many JPEG files: those of a folder, again and again under other names."""
    found = sorted(folder.rglob("*.jpg"))
    links = scratch / "links" / "one"
    links.mkdir(parents=True)
    names = []
    for i in range(count):
        names.append(f"{i:05}.jpg")
        (links / names[-1]).symlink_to(found[i % len(found)].resolve())
    return divided(Split(tuple(names), np.zeros(count, np.int64), FileImages(links, tuple(names)))), links.parent


def divided(split: Split) -> ImageDataset:
    """A tenth of the rows as test: a cache has such a split."""
    n = len(split.ids) - len(split.ids) // 10
    parts = {"train": split.take(np.arange(n)), "test": split.take(np.arange(n, len(split.ids)))}
    return ImageDataset("images", ("one",), parts)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("arrays", "files"))
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ways", nargs="+", default=[" ".join(way) for way in WAYS], help="such as 'eager bf16'")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if arguments.kind == "arrays":
            dataset, source = arrays(arguments.count, scratch)
        else:
            dataset, source = files(arguments.count, arguments.folder, scratch)
        measure(dataset, source, scratch, arguments)


def measure(dataset: ImageDataset, source: Path, scratch: Path, asked: argparse.Namespace) -> None:
    keep_freed_memory()  # as bin/embed does
    count = len(dataset)
    device = choose_device(asked.device)
    backbone = load_backbone(asked.backbone, weights="none")
    n_workers = default_workers(dataset, device)
    base = Embedding(dataset=dataset, backbone=backbone, cache_dir=scratch, device=device, workers=n_workers)
    asked_for = [way.split() for way in asked.ways]
    ways = [(engine, how) for engine, how in asked_for if unavailable(engine, how, device) is None]
    rates: dict[str, list[float]] = {}
    set_up: dict[str, list[float]] = {}

    def note(name: str, rate: float, seconds: float = 0.0) -> None:
        rates.setdefault(name, []).append(rate)
        set_up.setdefault(name, []).append(seconds)

    for round_number in range(asked.rounds):
        if (asked.backbone, device.type) == ("resnet18", "cpu"):
            command = [
                sys.executable,
                NOTEBOOK,
                source,
                str(count),
                scratch / "notebook.h5",
            ]  # as its own process has it
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            ready, seconds = map(float, done.stdout.split())
            note("notebook way", count / seconds, ready)
        for engine, precision in ways:
            name = f"{engine} {precision}"
            begun = time.perf_counter()
            folder = scratch / f"{name}-{round_number}"
            embedded = replace(base, engine=engine, precision=precision, cache_dir=folder).run()
            seconds = time.perf_counter() - begun
            note(name, embedded.verdict.images_per_s, seconds - count / embedded.verdict.images_per_s)
            note(f"{name}, model alone", model_alone(embedded.settled))
        note("input alone", input_alone(base))
        print(f"round {round_number + 1}", {name: round(each[-1], 1) for name, each in rates.items()}, flush=True)
    table(rates, set_up)


def model_alone(settled: Embedding) -> float:
    """Images/s of the engine on synthetic batches of the pipeline's own shape."""
    size = settled.backbone.preprocessing.image_size
    batch = torch.randint(0, 256, (settled.pass_images, 3, size, size), dtype=torch.uint8)
    batch = batch.contiguous(memory_format=torch.channels_last)
    return repeated(lambda: settled.prepared.forward(batch), settled.pass_images, seconds=2)


def input_alone(base: Embedding) -> float:
    """Images/s of reading, decoding and resizing the training split, with nothing after it."""
    images = base.dataset.splits["train"].images
    count = len(images)
    rows = [("train", np.arange(i, min(i + 16, count))) for i in range(0, count, 16)]
    reader = BatchReader(
        images={"train": images},
        content={"train": images.digests()},
        groups=rows,
        preprocessing=base.backbone.preprocessing,
        augmentation=None,
    )
    begun = time.perf_counter()
    for _ in reader.batches(workers=max(base.workers, 1), pin_memory=False):
        pass
    return count / (time.perf_counter() - begun)


def repeated(work: Callable[[], object], images: int, *, seconds: float) -> float:
    work()
    begun, passes = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        work()
        passes += 1
    return passes * images / (time.perf_counter() - begun)


def table(rates: dict[str, list[float]], set_up: dict[str, list[float]]) -> None:
    base = rates.get("notebook way")
    print(
        "\n| | images/s | times the notebook way | set-up, s | of its model alone | of the lower of model and input |"
    )
    print("|---|---|---|---|---|---|")
    for name, each in rates.items():
        if "alone" in name:
            continue
        ratio = f"{statistics.median(a / b for a, b in zip(each, base, strict=True)):.1f}" if base else ""
        alone = rates.get(f"{name}, model alone")
        shares = "| | |"
        if alone:
            lower = [min(a, b) for a, b in zip(alone, rates["input alone"], strict=True)]
            share = statistics.median(a / b for a, b in zip(each, alone, strict=True))
            shares = f"| {share:.2f} | {statistics.median(a / b for a, b in zip(each, lower, strict=True)):.2f} |"
        print(f"| {name} | {statistics.median(each):.0f} | {ratio} | {statistics.median(set_up[name]):.1f} {shares}")
    print(f"| input alone | {statistics.median(rates['input alone']):.0f} | | | | |")


if __name__ == "__main__":
    main()
