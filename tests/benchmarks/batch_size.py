"""Embedding rate by batch size and precision on this machine's CPU: medians of five rounds in one process, as Markdown.

python tests/benchmarks/batch_size.py
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch

from featcache.common.machine import keep_freed_memory
from featcache.embedding.job import Embedding
from featcache.models.backbones import load_backbone
from featcache.sources.image_sets import load_dataset
from featcache.tables.subset import Subset

ROUNDS = 5
BATCH_SIZES = (64, 32, 16, 8)
PRECISIONS = ("fp32", "bf16")


def main() -> None:
    keep_freed_memory()
    backbone = load_backbone("efficientnet_lite0")
    dataset = load_dataset("digits", subset=Subset(limit={"train": 256, "test": 64}))
    rates: dict[tuple[str, int], list[float]] = {}
    for _ in range(ROUNDS):
        for precision in PRECISIONS:
            for batch_size in BATCH_SIZES:
                with tempfile.TemporaryDirectory() as folder:
                    embedded = Embedding(
                        dataset=dataset,
                        backbone=backbone,
                        cache_dir=Path(folder),
                        precision=precision,
                        batch_size=batch_size,
                        device=torch.device("cpu"),
                    ).run()
                rates.setdefault((precision, batch_size), []).append(embedded.images_per_s)
    medians = {setting: statistics.median(values) for setting, values in rates.items()}
    print("| images/s | " + " | ".join(f"batch {size}" for size in BATCH_SIZES) + " |")
    print("|---|" + "---|" * len(BATCH_SIZES))
    for precision in PRECISIONS:
        print(f"| {precision} | " + " | ".join(f"{medians[precision, size]:.0f}" for size in BATCH_SIZES) + " |")


if __name__ == "__main__":
    main()
