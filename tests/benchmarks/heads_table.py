"""The README's tables: embed a data set, fit every head, print Markdown. Flags go to bin/embed as they stand.

    python tests/benchmarks/heads_table.py --dataset fashion-mnist --precision bf16

A cache that is already there is taken, with the seconds that it records.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

BIN = Path(__file__).resolve().parents[2] / "bin"


def command(name: str, *arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, BIN / name, *arguments, "--json"], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def main() -> None:
    cache = command("embed", *sys.argv[1:])
    runs = command("fit-head", "--clf", "all", "--cache", cache["cache"])["runs"]
    dataset, cost = runs[0]["dataset"], runs[0]["cost"]
    train = dataset["n_train"] + dataset["n_val"]
    print(f"{dataset['name']}, {runs[0]['encoder']['backbone']} in {runs[0]['encoder']['precision']}, ", end="")
    print(
        f"{train:,} training and {dataset['n_test']:,} test images; embedded once in {cost['embed_s']:,.0f} s, ", end=""
    )
    print(f"{cache['rows'] / cost['embed_s']:,.1f} images/s ({os.cpu_count()} cores, {platform.machine()})\n")
    print("| head | test accuracy | 95 % interval | fit, search included |")
    print("|---|---|---|---|")
    for run in sorted(runs, key=lambda run: -run["metrics"]["test"]["accuracy"]):
        test = run["metrics"]["test"]
        low, high = test["accuracy_ci95"]
        print(f"| {run['method']} | {test['accuracy']:.4f} | {low:.4f} to {high:.4f} | {run['cost']['fit_s']:.1f} s |")
    for run in runs:
        for note in run["notes"]:
            print(f"  {run['method']}: {note}", file=sys.stderr)


if __name__ == "__main__":
    main()
