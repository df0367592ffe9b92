"""What the training loop adds to a bare loop of forward, backward and step, on the same tensors in memory; in one run.

    python tests/benchmarks/loop_overhead.py [--side 64] [--batch-size 32] [--steps 40] [--rounds 5] [--unfreeze all]

ResNet-18 with random weights, AdamW, fp32. The bare loop is what one writes by hand, in epochs of shuffled batches. The
two take turns; prints medians, and the median of the ratios within a round. What measuring gradients once costs, which
our loop does in up to 20 steps an epoch, is timed by itself.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from featcache.common.machine import choose_device, device_name, keep_freed_memory
from featcache.models.backbones import load_backbone
from featcache.models.stages import StagedModel
from finetune.changes import MEASURED_STEPS, GradientNorms
from finetune.new_head import replace_head
from finetune.planning import make_plan
from finetune.plans import Plan
from finetune.settings import Settings
from finetune.thawing import group_of, thaw
from finetune.training import train

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tuning import TensorSource

BARE, OURS = "bare loop", "our loop"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--unfreeze", default="all")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    keep_freed_memory()
    device, settings = choose_device(args.device), Settings(batch_size=args.batch_size)
    staged = load_backbone("resnet18", weights="none", image_size=args.side).staged
    replace_head(staged, 10, seed=0)
    staged.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    names = [stage.name for stage in staged.stages]
    plan = make_plan(names, staged.head_name, epochs=1, lr=1e-4, unfreeze=args.unfreeze)
    n = args.steps * args.batch_size
    images = torch.randn(n, 3, args.side, args.side).to(device, memory_format=torch.channels_last)
    rows = TensorSource(images, np.arange(n) % 10)
    ways = {
        BARE: lambda: bare(staged, plan, rows, settings, device),
        OURS: lambda: ours(staged, plan, rows, settings, device),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-1, args.rounds):
        for name, way in ways.items():
            took = way()
            if number >= 0:  # the first round warms up
                seconds[name].append(took)
        print(f"round {number + 1}", {name: round(each[-1], 2) for name, each in seconds.items() if each}, flush=True)
    print(f"{n} images of {args.side} px, batches of {args.batch_size}, {args.unfreeze} thawed, {device_name(device)}")
    for name, each in seconds.items():
        spread = f"{min(each) / args.steps * 1e3:.1f} to {max(each) / args.steps * 1e3:.1f}"
        print(f"  {name}: median {statistics.median(each) / args.steps * 1e3:.1f} ms a step ({spread})")
    ratios = [a / b for a, b in zip(seconds[OURS], seconds[BARE], strict=True)]
    print(f"  {OURS} / {BARE}: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    print(f"  measuring gradients: {norms_ms(staged, plan):.1f} ms each time, at most {MEASURED_STEPS} times an epoch")
    print(f"  load average {os.getloadavg()[0]:.1f}")


def bare(staged: StagedModel, plan: Plan, rows: TensorSource, settings: Settings, device: torch.device) -> float:
    """Seconds of an epoch by hand; what is frozen is, and runs in eval mode, as in ours."""
    thawed = thaw(staged, plan, plan.phases[0])
    thawed.set_modes()
    model = staged.model
    optimizer = torch.optim.AdamW(thawed.parameters.values(), lr=1e-4)
    labels = torch.from_numpy(rows.labels).to(device)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels))).to(device)
    begun = time.perf_counter()
    for numbers in order.split(settings.batch_size):
        loss = F.cross_entropy(model(rows.inputs[numbers]), labels[numbers])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    float(loss.detach())
    return time.perf_counter() - begun


def ours(staged: StagedModel, plan: Plan, rows: TensorSource, settings: Settings, device: torch.device) -> float:
    """Seconds of an epoch of `finetune.training.train`."""
    done = train(staged, plan, rows, settings=settings, validation=None, device=device)
    return float(done.history[0]["seconds"])


def norms_ms(staged: StagedModel, plan: Plan) -> float:
    thawed = thaw(staged, plan, plan.phases[0])
    for parameter in thawed.parameters.values():
        parameter.grad = torch.randn_like(parameter)
    norms = GradientNorms(thawed.parameters, group_of(staged))
    each = []
    for _ in range(20):
        begun = time.perf_counter()
        norms.add()
        each.append(time.perf_counter() - begun)
    return statistics.median(each) * 1e3


if __name__ == "__main__":
    main()
