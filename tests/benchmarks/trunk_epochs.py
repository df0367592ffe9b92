"""An epoch of layer4 and the head from cached maps beside epochs from images, and beside full fine-tuning; in one run.

    python tests/benchmarks/trunk_epochs.py [--images 128] [--rounds 5] [--batch-size 32] [--dataset FOLDER]

ResNet-18 with random weights at 224 pixels, fp32. Without --dataset, photographs of 500 x 375 pixels are drawn as JPEG.
All ways take turns; prints the median seconds of each, and medians of the ratios within a round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from featcache.common.machine import choose_device, device_name, keep_freed_memory
from featcache.embedding.job import Embedding
from featcache.models.backbones import load_backbone
from featcache.models.stages import StagedModel
from featcache.sources.image_sets import load_dataset
from featcache.tables.subset import Subset
from finetune import image_source
from finetune.image_source import ImageSource, Pictures
from finetune.map_source import CachedMaps, MapSource
from finetune.new_head import replace_head
from finetune.planning import make_plan
from finetune.settings import Settings
from finetune.sources import Source
from finetune.training import train
from finetune.trunk_cost import trunk_costs

FULL, CACHED, KEPT = "full, images kept", "layer4 + head, cached maps", "layer4 + head, images kept"
DECODED, HEAD = "layer4 + head, images decoded anew", "head, images kept"
PLANS = {FULL: "all", CACHED: "layer4", KEPT: "layer4", DECODED: "layer4", HEAD: None}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--storage", default="float16")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    keep_freed_memory()
    device, settings = choose_device(args.device), Settings(batch_size=args.batch_size)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.dataset or drawn(Path(scratch, "pictures"), args.images)
        staged, sources = prepared(folder, args.images, args.storage, Path(scratch), settings, device)
        seconds: dict[str, list[float]] = {name: [] for name in PLANS}
        for number in range(-1, args.rounds):
            for name, unfreeze in PLANS.items():
                took = epoch(staged, unfreeze, sources[name], settings, device, decode_anew=name == DECODED)
                if number >= 0:  # the first round warms up
                    seconds[name].append(took)
    n = len(sources[FULL].labels)
    print(f"{n} images, batches of {args.batch_size}, {args.storage} maps, {args.rounds} rounds, {device_name(device)}")
    for name, each in seconds.items():
        spread = f"{min(each):.2f} to {max(each):.2f}"
        print(
            f"  {name}: median {statistics.median(each):.2f} s ({spread}), {statistics.median(each) / n * 1e3:.1f} ms"
        )
    for above, below in ((KEPT, CACHED), (DECODED, CACHED), (FULL, CACHED), (FULL, KEPT), (FULL, HEAD)):
        ratios = [a / b for a, b in zip(seconds[above], seconds[below], strict=True)]
        print(f"  {above} / {below}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    for name in (CACHED, KEPT, FULL):
        print(f"  {name}: {gflop(staged, name):.2f} GFLOP an image")
    print(f"  load average {os.getloadavg()[0]:.1f}")


def gflop(staged: StagedModel, name: str) -> float:
    """What training on an image multiplies and adds: forward, and backward to what trains."""
    trunk, tail = staged.part(0, 4), staged.part(4, None)
    staged.model.cpu().eval().requires_grad_(name == FULL)
    tail.requires_grad_(True)
    counter, images = FlopCounterMode(display=False), torch.zeros(1, 3, 224, 224)
    with torch.no_grad():
        maps = trunk(images)
    with counter:
        if name != CACHED:
            with torch.set_grad_enabled(name == FULL):
                maps = trunk(images)
        tail(maps).sum().backward()
    return float(counter.get_total_flops()) / 1e9


def drawn(root: Path, count: int) -> Path:
    """Smooth random pictures in two classes, as large as photographs of data sets are."""
    rng = np.random.default_rng(0)
    for split, n in (("train", count), ("test", 2)):
        for i in range(n):
            path = root / split / "ab"[i % 2] / f"{i:05}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            coarse.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
    return root


def prepared(
    folder: Path, count: int, storage: str, scratch: Path, settings: Settings, device: torch.device
) -> tuple[StagedModel, dict[str, Source]]:
    """The model, and what each way trains on."""
    backbone = load_backbone("resnet18", weights="none")
    staged = backbone.staged
    replace_head(staged, 2, seed=0)
    dataset = load_dataset(str(folder), subset=Subset(limit={"train": count, "test": 2}))
    work = Embedding(
        dataset=dataset,
        backbone=backbone,
        cache_dir=scratch,
        cut=staged.cut_after("layer3"),
        storage=storage,
        device=device,
        batch_size=settings.batch_size,
    )
    split = work.run().cache.splits["train"]
    rows = np.arange(len(split))
    cost = trunk_costs(staged, [4], side=224, settings=settings, device=device)[4]
    maps = MapSource(
        parts=(CachedMaps(split=split, rows=rows, has_views=False),),
        labels=split.labels,
        cut=4,
        n_views=1,
        order=cost.order,
        device=device,
    )
    pictures = Pictures(
        images={"train": dataset.splits["train"].images},
        content={"train": split.content},
        preprocessing=backbone.preprocessing,
        workers=2,
    )
    images = ImageSource(pictures=pictures, splits=["train"] * len(rows), rows=rows, labels=split.labels, device=device)
    anew = replace(images)
    _ = images.kept
    return staged, {FULL: images, KEPT: images, HEAD: images, DECODED: anew, CACHED: maps}


def epoch(
    staged: StagedModel,
    unfreeze: str | None,
    source: Source,
    settings: Settings,
    device: torch.device,
    *,
    decode_anew: bool,
) -> float:
    """Seconds of one."""
    stages = [stage.name for stage in staged.stages]
    plan = make_plan(stages, staged.head_name, epochs=1, lr=1e-4, unfreeze=unfreeze)
    before = image_source.KEPT_BYTES
    image_source.KEPT_BYTES = 0 if decode_anew else before
    try:
        done = train(staged, plan, source, settings=settings, validation=None, device=device)
    finally:
        image_source.KEPT_BYTES = before
    return float(done.history[0]["seconds"])


if __name__ == "__main__":
    main()
