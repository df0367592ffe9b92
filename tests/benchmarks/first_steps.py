"""The first training step of each batch size beside those after it, channels last and first, in bf16 and fp32.

    python tests/benchmarks/first_steps.py [--backbone efficientnet_lite0] [--device cuda] [--batch-sizes 64 63]

On a GPU cuDNN makes its plans for a batch size in the first step. A bare loop of forward, backward and AdamW; each
combination has batch sizes of its own, lower by two than those of the one before, so that no plan is there yet.
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import product

import torch
import torch.nn.functional as F  # noqa: N812  as everyone calls it

from featcache.common.machine import choose_device, device_name
from featcache.models.backbones import load_backbone
from finetune.forward import autocast


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 63])
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    device = choose_device(args.device)
    backbone = load_backbone(args.backbone)
    model, side = backbone.staged.model.requires_grad_(True), backbone.preprocessing.image_size
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False  # as in training
    print(f"{args.backbone}, {side} px, {device_name(device)}")
    orders = {"channels last": torch.channels_last, "channels first": torch.contiguous_format}
    for number, (precision, order) in enumerate(product(("bf16", "fp32"), orders)):
        model = model.to(device, memory_format=orders[order]).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        for n in (size - number * len(args.batch_sizes) for size in args.batch_sizes):
            images = torch.randn(n, 3, side, side).to(device, memory_format=orders[order])
            labels = torch.zeros(n, dtype=torch.int64, device=device)
            seconds = []
            for _ in range(args.steps):
                begun = time.perf_counter()
                with autocast(device, precision):
                    logits = model(images)
                F.cross_entropy(logits.float(), labels).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                seconds.append(time.perf_counter() - begun)
            later = statistics.median(seconds[2:])
            print(
                f"  {precision}, {order}, {n} images: first {seconds[0]:.2f} s, then {later * 1e3:.1f} ms", flush=True
            )


if __name__ == "__main__":
    main()
