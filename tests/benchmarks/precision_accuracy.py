"""What a faster engine or precision costs a logistic head: test accuracy with its interval, real weights, as Markdown.

    python tests/benchmarks/precision_accuracy.py fashion-mnist --limit train=10000,test=2000
    python tests/benchmarks/precision_accuracy.py ../shared/data/hymenoptera_data --fp16

fp16 is slow on most CPUs, so it is asked for. Caches stay in features/, runs in runs/.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from featcache.engines.backends import unavailable

BIN = Path(__file__).resolve().parents[2] / "bin"
WAYS = (
    ("eager", "fp32"),
    ("eager", "bf16"),
    ("eager", "fp16"),
    ("compile", "fp32"),
    ("compile", "bf16"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
)


def command(name: str, *arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, BIN / name, *arguments, "--json"], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def main() -> None:
    flags = [flag for flag in sys.argv[1:] if flag != "--fp16"]
    print("| engine | precision | logreg, test accuracy | 95 % interval | cosine to fp32 eager, least and mean |")
    print("|---|---|---|---|---|")
    for engine, precision in WAYS:
        if unavailable(engine, precision, torch.device("cpu")) or (precision == "fp16" and "--fp16" not in sys.argv):
            continue
        cache = command("embed", "--dataset", *flags, "--engine", engine, "--precision", precision)
        run = command("fit-head", "--clf", "logreg", "--cache", cache["cache"])
        test, told = run["metrics"]["test"], cache["fidelity"]
        low, high = test["accuracy_ci95"]
        cosine = f"{told['cosine_min']:.4f}, {told['cosine_mean']:.4f}" if told else "the reference"
        print(f"| {engine} | {precision} | {test['accuracy']:.4f} | {low:.4f} to {high:.4f} | {cosine} |", flush=True)


if __name__ == "__main__":
    main()
