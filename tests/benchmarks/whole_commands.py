"""Whole commands from start to exit on Fashion-MNIST: bin/embed beside the notebook way, taking turns.

    python tests/benchmarks/whole_commands.py --count 10000
    python tests/benchmarks/whole_commands.py --count 250

Prints a Markdown table of medians. ``--first`` empties what engines and featcache remember before each command, as on a
machine that never ran it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from featcache.engines.backends import unavailable

HERE = Path(__file__).resolve().parent
BIN = HERE.parents[1] / "bin"
FLAGS = {
    "auto": [],
    "eager fp32": ["--engine", "eager", "--precision", "fp32"],
    "eager": ["--engine", "eager"],
    "compile": ["--engine", "compile"],
    "openvino": ["--engine", "openvino"],
}


def main() -> None:
    import torch

    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", nargs="+", default=list(FLAGS))
    parser.add_argument("--first", action="store_true")
    arguments = parser.parse_args()
    cpu = torch.device("cpu")
    ways = [way for way in arguments.ways if way not in ("compile", "openvino") or not unavailable(way, "bf16", cpu)]
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for round_number in range(arguments.rounds):
            notebook = [HERE / "notebook_way.py", "fashion-mnist", str(arguments.count), scratch / "notebook.h5"]
            seconds.setdefault("notebook way", []).append(timed(notebook, {}))
            for way in ways:
                remembered = scratch / (f"memory-{way}-{round_number}" if arguments.first else "memory")
                environment = {
                    "XDG_CACHE_HOME": str(remembered),
                    "TORCHINDUCTOR_CACHE_DIR": str(remembered / "kernels"),
                }
                limits = f"train={arguments.count - arguments.count // 10},test={arguments.count // 10}"
                flags = ["--backbone", "resnet18", "--weights", "none", "--dataset", "fashion-mnist", "--limit", limits]
                where = ["--cache-dir", scratch / f"{way}-{round_number}"]
                command = [BIN / "embed", *flags, *where, *FLAGS[way]]
                seconds.setdefault(way, []).append(timed(command, environment))
            print(f"round {round_number + 1}", {way: round(each[-1], 1) for way, each in seconds.items()}, flush=True)
    base = seconds["notebook way"]
    print(f"\n| {arguments.count:,} images, whole command | seconds | times faster |\n|---|---|---|")
    for way, each in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(base, each, strict=True))
        print(f"| {way} | {statistics.median(each):.1f} | {ratio:.1f} |")


def timed(command: list[object], environment: dict[str, str]) -> float:
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, *map(str, command)], check=True, stdout=subprocess.DEVNULL, env={**os.environ, **environment}
    )
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
