"""bin/compare on real heads and real fine-tuning: one split for all, finished cells found again, failures told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import QUICK

from featcache.cache.cache_file import find_caches
from finetune.comparison import running
from finetune.comparison.keeping import FILE_NAME, read_comparison
from finetune.comparison.results import Comparison
from heads.publishing import Finished, HeadPiece, fit_and_publish
from heads.runs import read_run

ROOT = Path(__file__).resolve().parents[1]
#: Of a real backbone with random weights, on 160 small images.
SMALL = (*QUICK[:-2], "--per-class", "10", "--limit", "test=60", "--device", "cpu", "--val-fraction", "0.2")
#: What is not time or memory.
RESULTS = (
    "backbone", "method", "fraction", "n_seeds", "n_failed", "n_train", "trainable_params", "accuracy", "accuracy_ci95",
    "seed_spread", "val_accuracy", "train_accuracy", "gap", "params", "notes",
)  # fmt: skip
Run = Callable[..., tuple[int, str, str]]


def compare(run: Run, *flags: object) -> dict[str, Any]:
    status, out, err = run("compare", *SMALL, *flags, "--no-report", "--json")
    assert status == 0, err
    return json.loads(out)


def kept(tmp_path: Path) -> Comparison:
    """The comparison that was written last."""
    files = (tmp_path / "runs").glob(f"*/{FILE_NAME}")
    return read_comparison(max(files, key=lambda path: path.stat().st_mtime).parent)


def results(told: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: row[key] for key in RESULTS} for row in told["table"]]


def runs_in(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("*/run.json")}


def test_heads_and_fine_tuning_on_the_same_rows(run: Run, tmp_path: Path) -> None:
    methods = "logreg,knn,partial:last:1,lp-ft,partial:layer9"
    flags = ("--methods", methods, "--seeds", "2", "--epochs", "1", "--trials", "2")
    told = compare(run, *flags)
    assert set(told) == {"table", "differences", "verdict", "report"}
    rows = {row["method"]: row for row in told["table"]}
    assert list(rows) == methods.split(",")
    broken = rows.pop("partial:layer9")
    assert (broken["n_seeds"], broken["n_failed"], broken["accuracy"]) == (0, 2, None)
    assert "unknown stage" in broken["notes"][0]
    for row in rows.values():
        assert row["n_seeds"] == 2
        assert row["n_train"] == 80
        assert row["notes"] == []
        assert row["seed_spread"][0] <= row["accuracy"] <= row["seed_spread"][1]
        assert row["accuracy_ci95"][0] < row["accuracy"] < row["accuracy_ci95"][1]
        assert row["disk_bytes"] > 0
        assert row["peak_rss_mb"] > 50
    assert rows["partial:last:1"]["trainable_params"] == 268_810
    assert rows["logreg"]["epoch_s"] is None
    assert rows["lp-ft"]["epoch_s"] > 0
    best = max(("logreg", "knn"), key=lambda method: rows[method]["val_accuracy"])
    assert {each["against"] for each in told["differences"]} == {best}
    assert {each["method"] for each in told["differences"]} == set(rows) - {best}
    tuned = max(("partial:last:1", "lp-ft"), key=lambda method: rows[method]["val_accuracy"])
    assert told["verdict"]["best_tuned"] == tuned
    assert told["verdict"]["best_head"] == best
    assert len(told["verdict"]["sentences"]) == 3

    made = kept(tmp_path)
    records = {(cell.method, cell.seed): read_run(cell.run) for cell in made.cells if cell.run is not None}
    for seed in (0, 1):
        own = [each for (_, s), each in records.items() if s == seed]
        assert len({each.record["dataset"]["fingerprint"] for each in own}) == 1
        assert {each.record["selection"]["refit"] for each in own} == {False}
        for each in own:
            np.testing.assert_array_equal(each.predictions["val_ids"], own[0].predictions["val_ids"])
    trials = records["partial:last:1", 0].record["selection"]["trials"]
    assert [trial["params"]["lr"] for trial in trials] == pytest.approx([3e-4, 1e-4])
    (chosen,) = (trial for trial in trials if trial["chosen"])
    assert chosen["val_accuracy"] == max(trial["val_accuracy"] for trial in trials)
    assert chosen["val_accuracy"] == records["partial:last:1", 0].record["metrics"]["val"]["accuracy"]
    assert records["lp-ft", 1].record["plan"]["init_head"].endswith(records["logreg", 1].head.parent.name)
    assert not [path for path in (tmp_path / "runs").iterdir() if path.name.startswith(".")]

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/run.json")}
    again = compare(run, *flags)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/run.json")} == before
    assert again["table"] == told["table"]
    assert again["differences"] == told["differences"]

    names = [cell.run.name for cell in made.cells if cell.run is not None]  # of heads that tie, the first is the best
    status, out, err = run("compare", *names, "--json")
    assert status == 0, err
    finished = json.loads(out)
    assert Path(finished["report"]).read_text().startswith("<!DOCTYPE html>")
    by_method = {row["method"]: row for row in finished["table"]}
    assert by_method["partial:layer4"]["accuracy"] == rows["partial:last:1"]["accuracy"]
    assert {each["p"] for each in finished["differences"]} == {each["p"] for each in told["differences"]}


def test_shares_of_the_rows_and_a_budget(run: Run, tmp_path: Path) -> None:
    flags = ("--methods", "logreg,knn", "--seeds", "1", "--seed", "1", "--fractions", "0.5,1")
    status, _, err = run("compare", *SMALL, *flags, "--budget", "0s")
    assert status == 1
    assert "no cell has a finished run: left out: the budget of 0 minutes was spent" in err
    told = compare(run, *flags)
    assert [(row["method"], row["fraction"], row["n_train"]) for row in told["table"]] == [
        ("logreg", 1.0, 80), ("knn", 1.0, 80), ("logreg", 0.5, 40), ("knn", 0.5, 40),
    ]  # fmt: skip
    cells = {(cell.method, cell.seed, cell.fraction): cell.run for cell in kept(tmp_path).cells}
    dev = []
    for fraction in (0.5, 1.0):
        folder = cells["logreg", 1, fraction]
        assert folder is not None
        dev.append(read_run(folder).record["dataset"]["chosen"]["subset"])
    assert dev == [{"fraction": 0.5, "take": "random", "seed": 1}, {}]
    curve = compare(
        run, "--methods", "logreg,head", *flags[2:6], "--epochs", "2", "--trials", "1", "--record-test-curve"
    )
    assert curve["table"][0]["accuracy"] == told["table"][0]["accuracy"]
    (folder,) = [cell.run for cell in kept(tmp_path).cells if cell.method == "head"]
    assert folder is not None
    record = read_run(folder).record
    best = record["history"][record["params"]["epochs"] - 1]
    assert best["test_accuracy"] == pytest.approx(record["metrics"]["test"]["accuracy"])
    (tmp_path / "out.txt").write_text("\n".join(read_run(folder).predictions["val_ids"][:5].tolist()))
    fewer = compare(
        run, "--methods", "logreg,head", *flags[2:6], "--epochs", "1", "--trials", "1", "--exclude", "out.txt"
    )
    assert [(row["n_train"], row["notes"]) for row in fewer["table"]] == [(75, []), (75, [])]
    spent = compare(run, *flags, "--methods", "logreg,svm", "--budget", "0s")
    assert [row["n_failed"] for row in spent["table"]] == [0, 1, 0, 1]
    assert spent["table"][1]["notes"] == ["left out: the budget of 0 minutes was spent"]


def test_a_cell_that_another_process_finishes_first(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(piece: HeadPiece, *given: Any) -> Finished:
        fit_and_publish(piece)
        return fit_and_publish(piece, *given)

    monkeypatch.setattr(running, "fit_and_publish", twice)
    status, out, err = run("compare", *SMALL, "--methods", "ridge,centroid", "--seeds", "1", "--no-report")
    assert status == 0, err
    runs = runs_in(tmp_path / "runs")
    cells = {cell.run.name for cell in kept(tmp_path).cells if cell.run is not None}
    assert len(cells) == 2
    assert runs == cells | {f"{name}-1" for name in cells}
    assert all(f"/{name} meanwhile; this one's work is kept as " in out for name in cells)


def test_wrong_usage_is_one_line(run: Run, tmp_path: Path) -> None:
    for flags, status, told in (
        (("--methods", "logrge"), 2, "did you mean logreg"),
        (("--budget", "soon"), 2, "such as 90s, 30m or 1h30m"),
        (("--recipe", "none"), 2, "unknown recipe"),
        (("--name", "../x"), 2, "--name"),
        (("one",), 2, "one run alone"),
        (("one", "two"), 1, "one: no folder of a run"),
        (("one", "two", "--methods", "full"), 2, "--methods is for fitting"),
        (("--dataset", "nowhere/at/all", "--methods", "logreg"), 1, "nowhere/at/all"),
    ):
        found, out, err = run("compare", *flags, "--json")
        assert (found, out) == (status, ""), err
        assert err.splitlines()[-1].startswith("compare: error: ")
        assert told in err.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_killed_and_run_again_it_comes_to_the_same(run: Run, tmp_path: Path) -> None:
    """SIGKILL amid fine-tuning: finished cells and epochs are kept, and the table is that of an undisturbed run.

    Its quicker twins: `test_heads_and_fine_tuning_on_the_same_rows`, which runs again what is finished, and
    `test_checkpointing`, whose trainings go on to the same bits.
    """
    flags = ("--methods", "logreg,full", "--seeds", "1", "--epochs", "1", "--trials", "2")
    command = [sys.executable, str(ROOT / "bin/compare"), *SMALL, *flags, "--no-report", "--runs-dir", "killed"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # as many threads as here
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=quiet, stderr=quiet)
    killed = tmp_path / "killed"
    deadline = time.monotonic() + 120
    while not list(killed.glob(".unfinished-*/trial-0/chosen.pt")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    left = {path: path.stat().st_mtime_ns for path in killed.glob("*/run.json")}
    assert len(left) == 1
    assert not list(killed.glob(f"*/{FILE_NAME}"))
    resumed = compare(run, *flags, "--runs-dir", "killed")
    assert left.items() < {path: path.stat().st_mtime_ns for path in killed.glob("*/run.json")}.items()
    whole = compare(run, *flags)
    losses = [[row.pop("test_loss") for row in told["table"]] for told in (resumed, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # the killed process had other threads
    assert results(resumed) == results(whole)
    assert resumed["differences"] == whole["differences"]
    assert runs_in(killed) == runs_in(tmp_path / "runs")
    assert not list(killed.glob(".unfinished-*"))
    assert len(find_caches(tmp_path / "features")) == 1
