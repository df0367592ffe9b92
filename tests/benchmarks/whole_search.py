"""`bin/fit-head --clf logreg` beside scikit-learn's LogisticRegressionCV with the same search: seconds, peak memory.

    python tests/benchmarks/whole_search.py features/FILE.h5

Each is a process of its own, from the cache file to predicted test rows, one run each. scikit-learn gets the values of
C that bin/fit-head tried, its defaults else (tol, 100 iterations, BLAS's threads), and the same rows to validate on;
then it fits train and validation with the best, as bin/fit-head does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

THEIRS = """
import json, sys, warnings
import numpy as np
from sklearn.linear_model import LogisticRegressionCV
from sklearn.preprocessing import StandardScaler
from featcache.cache.cache_file import Cache
from featcache.tables.subset import carve
path, Cs = sys.argv[1], json.loads(sys.argv[2])
cache = Cache.open(path)
train, test = cache.splits["train"], cache.splits["test"]
X, y = train.load(train.usable()), train.labels[train.usable()]
scaler = StandardScaler().fit(X)
X = scaler.transform(X)
settings = {"scoring": "accuracy", "use_legacy_attributes": False, "l1_ratios": (0,)}
model = LogisticRegressionCV(Cs=Cs, cv=[carve(y, fraction=0.1, seed=0)], **settings).fit(X, y)
rows = test.usable()
right = model.predict(scaler.transform(test.load(rows))) == test.labels[rows]
print(json.dumps([float(np.ravel(model.C_)[0]), float(right.mean())]))
"""


def run(*command: str) -> tuple[str, float, float]:
    """stdout, wall seconds, and peak memory in GiB."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, process.returncode
    return said, time.perf_counter() - began, usage.ru_maxrss / 2**20


def main() -> None:
    cache = str(Path(sys.argv[1]).resolve())
    with tempfile.TemporaryDirectory() as runs:
        fit = str(ROOT / "bin" / "fit-head")
        said, seconds, peak = run(
            sys.executable, fit, "--clf", "logreg", "--cache", cache, "--runs-dir", runs, "--json"
        )
    ours = json.loads(said)
    ours = ours["runs"][0] if "runs" in ours else ours
    tried = [each["params"]["C"] for each in ours["selection"]["candidates"] if each["tried"]]
    print(f"bin/fit-head: {len(tried)} values of C, {seconds:.1f} s, peak {peak:.2f} GiB; ", end="")
    print(f"C = {ours['params']['C']:g}, test accuracy {ours['metrics']['test']['accuracy']:.4f}", flush=True)
    os.environ["PYTHONPATH"] = str(ROOT)
    said, seconds, peak = run(sys.executable, "-c", THEIRS, cache, json.dumps(tried))
    C, accuracy = json.loads(said)
    print(f"LogisticRegressionCV: {seconds:.1f} s, peak {peak:.2f} GiB; C = {C:g}, test accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
