"""Two ranks beside one process, each with one thread, and beside one process with two; whole commands taking turns.

    python tests/benchmarks/two_ranks.py --count 2000

One process on its own threads already uses all cores of a machine: ranks gain most where each has a device of its own.
Prints a Markdown table of medians: images/s from the first batch to the last, and seconds of the whole command.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BIN = Path(__file__).resolve().parents[2] / "bin"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
WAYS = {
    "one process, one thread": (1, []),
    "two ranks, one thread each": (1, TORCHRUN),
    "one process, two threads": (2, []),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    limits = f"train={arguments.count - arguments.count // 10},test={arguments.count // 10}"
    flags = ["--dataset", "fashion-mnist", "--limit", limits, "--backbone", "resnet18", "--weights", "none"]
    flags += ["--engine", "eager", "--precision", "bf16", "--json"]
    rates: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    for round_number in range(arguments.rounds):
        for way, (threads, launcher) in WAYS.items():
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, *launcher, str(BIN / "embed"), *flags, "--cache-dir", folder]
                begun = time.perf_counter()
                environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
                seconds.setdefault(way, []).append(time.perf_counter() - begun)
            rates.setdefault(way, []).append(json.loads(done.stdout)["verdict"]["images_per_s"])
        print(f"round {round_number + 1}", {way: each[-1] for way, each in rates.items()}, flush=True)
    base, base_seconds = rates["one process, one thread"], seconds["one process, one thread"]
    print("\n| | images/s | times one thread | whole command, s | times faster |\n|---|---|---|---|---|")
    for way in WAYS:
        gain = statistics.median(a / b for a, b in zip(rates[way], base, strict=True))
        faster = statistics.median(a / b for a, b in zip(base_seconds, seconds[way], strict=True))
        told = (
            f"{statistics.median(rates[way]):.0f} | {gain:.2f} | {statistics.median(seconds[way]):.1f} | {faster:.2f}"
        )
        print(f"| {way} | {told} |")


if __name__ == "__main__":
    main()
