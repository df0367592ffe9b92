"""What bin/audit finds of wrong labels, exact and resaved copies that are planted in copies of a set of two classes.

    python tests/benchmarks/planted_faults.py path/to/hymenoptera_data [--seeds 5] [--backbone efficientnet_lite0]

The set has train/ and val/. Each seed plants 12 wrong labels, 8 exact and 8 resaved copies of training images in val.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from featcache.commands import embed as embed_command
from heads.audit import audit_command

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from planting import found_in, plant


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    args = parser.parse_args()
    source = args.source.resolve()
    total = {kind: [0, 0, 0] for kind in ("wrong labels", "exact duplicates", "near duplicates")}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for seed in range(args.seeds):
            root, name = Path(f"planted-{seed}"), f"seed-{seed}"
            truth = plant(source, root, test="val", seed=seed)
            assert embed_command.main(["--dataset", f"./{root}", "--backbone", args.backbone]) == 0
            assert audit_command.main(["--dataset", f"./{root}", "--name", name]) == 0
            found = found_in(Path("audits", name, "findings.csv"))
            for counts, planted, listed in zip(
                total.values(), (truth.wrong, truth.exact, truth.resaved), found, strict=True
            ):
                for place, number in enumerate((len(planted), len(listed), len(planted & listed))):
                    counts[place] += number
    for kind, (planted, listed, right) in total.items():
        precision = f"{right / listed:.2f}" if listed else "none listed"
        print(f"{kind}: {planted} planted, {listed} listed, {right} right")
        print(f"  precision {precision}, recall {right / planted:.2f}")


if __name__ == "__main__":
    main()
