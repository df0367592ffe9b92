"""An epoch in bf16 beside one in fp32, from images and from cached maps; in one run.

    python tests/benchmarks/epoch_precision.py [--images 96] [--rounds 5] [--batch-size 32]

ResNet-18 with random weights at 224 pixels: everything from images that are kept in memory, and layer4 and the head
from cached float16 maps. All ways take turns; prints the median of each, and medians of the ratios within a round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

from trunk_epochs import CACHED, FULL, PLANS, drawn, epoch, prepared

from featcache.common.machine import choose_device, device_name, keep_freed_memory
from finetune.settings import Settings


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    keep_freed_memory()
    device, fp32 = choose_device(args.device), Settings(batch_size=args.batch_size)
    both = {"fp32": fp32, "bf16": replace(fp32, precision="bf16")}
    ways = [(name, precision) for name in (FULL, CACHED) for precision in both]
    with tempfile.TemporaryDirectory() as scratch:
        folder = drawn(Path(scratch, "pictures"), args.images)
        staged, sources = prepared(folder, args.images, "float16", Path(scratch), fp32, device)
        seconds: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
        for number in range(-1, args.rounds):
            for way in ways:
                name, precision = way
                took = epoch(staged, PLANS[name], sources[name], both[precision], device, decode_anew=False)
                if number >= 0:  # the first round warms up
                    seconds[way].append(took)
            print(f"round {number + 1}", [round(each[-1], 2) for each in seconds.values() if each], flush=True)
    print(f"{args.images} images, batches of {args.batch_size}, {args.rounds} rounds, {device_name(device)}")
    for (name, precision), each in seconds.items():
        spread = f"{min(each) / args.images * 1e3:.1f} to {max(each) / args.images * 1e3:.1f}"
        print(f"  {name}, {precision}: median {statistics.median(each) / args.images * 1e3:.1f} ms an image ({spread})")
    for name in (FULL, CACHED):
        ratios = [a / b for a, b in zip(seconds[name, "fp32"], seconds[name, "bf16"], strict=True)]
        print(f"  {name}, fp32 / bf16: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"  load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
