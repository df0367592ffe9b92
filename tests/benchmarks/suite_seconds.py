"""Measure the CPU seconds that the tests take, of all processes that they start, imports and collection included.

    python tests/benchmarks/suite_seconds.py [CHECKOUT ...] [--by-file 20] [-- PYTEST FLAGS]

Runs ``pytest -n 2`` in each checkout in turn (by default this one), with the packages of this environment, and
prints the seconds of each and its share of the first's. Linux alone: this process adopts what outlives its parent, so
that nothing is missed.

In ``--by-file`` the children that a test starts itself count for its file. Those that the server of tests/forking.py
forks are the server's, which ends with the session: they count in the last line of the table.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

_PR_SET_CHILD_SUBREAPER = 36
_VARIABLE = "SUITE_SECONDS"


def cpu_seconds(*whose: int) -> float:
    """User and system time of this process, of the children that it has waited for, or of both."""
    usages = [resource.getrusage(each) for each in whose]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[Any]:
    """As a plugin of pytest: write the seconds of each test, its fixtures' and its children's."""
    before = cpu_seconds(resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    result = yield
    seconds = cpu_seconds(resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN) - before
    with Path(os.environ[_VARIABLE], str(os.getpid())).open("a") as file:
        file.write(json.dumps([item.path.name, item.nodeid, seconds]) + "\n")
    return result


def measure(checkout: Path, flags: list[str], folder: Path) -> float:
    """The CPU seconds of pytest in a checkout and of all its descendants; each test's are left in the folder."""
    search = os.pathsep.join([str(checkout), str(Path(__file__).resolve().parent)])
    environment = {**os.environ, "PYTHONPATH": search, _VARIABLE: str(folder)}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", Path(__file__).stem, *flags]
    before = cpu_seconds(resource.RUSAGE_CHILDREN)
    pytest_process = subprocess.Popen(command, cwd=checkout, env=environment)
    status = pytest_process.wait()
    end = time.monotonic() + 20
    with suppress(ChildProcessError):  # there are none left
        while True:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if not pid:
                time.sleep(0.1)
            if time.monotonic() > end:
                print("processes that outlive the tests by 20 s are killed", file=sys.stderr)
                for child in children():
                    os.kill(child, signal.SIGKILL)
    if status:
        print(f"{checkout}: pytest ended with {status}", file=sys.stderr)
    return cpu_seconds(resource.RUSAGE_CHILDREN) - before


def children() -> list[int]:
    """The processes whose parent is this one."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def by_file(folder: Path) -> Counter[str]:
    """The seconds of each file's tests."""
    seconds: Counter[str] = Counter()
    for path in folder.iterdir():
        for line in path.read_text().splitlines():
            name, _, taken = json.loads(line)
            seconds[name] += taken
    return seconds


def main() -> None:
    """Measure each checkout and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="*", type=Path, default=[Path(__file__).resolve().parents[2]])
    parser.add_argument("--by-file", type=int, default=0, metavar="N", help="show the N files that take most")
    given = sys.argv[1:]
    split = given.index("--") if "--" in given else len(given)
    asked, flags = parser.parse_args(given[:split]), given[split + 1 :]
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    first = 0.0
    for checkout in asked.checkouts:
        with tempfile.TemporaryDirectory() as folder:
            begun = time.monotonic()
            seconds = measure(checkout.resolve(), flags, Path(folder))
            wall, files = time.monotonic() - begun, by_file(Path(folder))
        first = first or seconds
        print(f"{checkout}: {seconds:,.0f} CPU s, {seconds / first:.2f} of the first; {wall:,.0f} s in all")
        for name, taken in files.most_common(asked.by_file):
            print(f"  {taken:7.1f}  {name}")
        if asked.by_file:
            print(f"  {seconds - sum(files.values()):7.1f}  imports, collection, and what ends with the session")


if __name__ == "__main__":
    main()
