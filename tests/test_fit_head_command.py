"""What bin/fit-head offers beyond one head: seeds, workers, comparisons, calibration, rankings, reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import QUICK
from making import age, golden
from running import summary_of
from selecting import SMALL_PROBE

from featcache.cache.cache_file import Cache
from featcache.commands.console import Console, Parser
from featcache.common.errors import CacheError
from featcache.embedding.job import Embedding
from finetune.asked_command import cache_of, new_finetune_parser
from heads.asked_command import caches_of, new_fit_head_parser
from heads.classifiers import CLASSIFIERS
from heads.comparing import reference_of
from heads.runs import read_run
from heads.saved import load_head

Run = Callable[..., tuple[int, str, str]]
FEW = ("--val-fraction", "0.2")


def comparable(record: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on when, where and how fast."""
    selection = {**record["selection"], "candidates": [c["params"] for c in record["selection"]["candidates"]]}
    accuracies = {split: metrics["accuracy"] for split, metrics in record["metrics"].items()}
    return {"seed": record["seed"], "params": record["params"], "selection": selection, "accuracies": accuracies}


def test_seeds_are_runs_of_their_own_with_a_summary(run: Run, tmp_path: Path) -> None:
    run("embed", *QUICK)
    found = summary_of(run, "fit-head", "--clf", "ridge,knn", "--seeds", 3, "--seed", 5, *FEW)
    assert [(r["method"], r["seed"]) for r in found["runs"]] == [(c, s) for c in ("ridge", "knn") for s in (5, 6, 7)]
    names = {f"digits-timm_test_resnet-{clf}-{n}" for clf in ("ridge", "knn") for n in (1, 2, 3)}
    assert {folder.name for folder in (tmp_path / "runs").iterdir()} == names
    assert len({record["dataset"]["fingerprint"] for record in found["runs"][:3]}) == 3  # carved anew
    assert found["runs"][0]["dataset"]["fingerprint"] == found["runs"][3]["dataset"]["fingerprint"]
    accuracies = [record["metrics"]["test"]["accuracy"] for record in found["runs"][:3]]
    summary = found["summary"]["ridge"]
    assert summary["seeds"] == [5, 6, 7]
    assert summary["test_accuracy"] == {
        "mean": pytest.approx(np.mean(accuracies)),
        "sd": pytest.approx(np.std(accuracies, ddof=1)),
        "min": min(accuracies),
        "max": max(accuracies),
    }
    low, high = summary["accuracy_ci95"]
    assert low < np.mean(accuracies) < high
    alone = summary_of(run, "fit-head", "--clf", "ridge", "--seed", 6, *FEW)
    assert comparable(alone) == comparable(found["runs"][1])
    status, out, _ = run("fit-head", "--clf", "ridge", "--seeds", 2, "--name", "mine", *FEW)
    assert status == 0
    assert "sd over seeds" in out
    assert {"mine-s0", "mine-s1"} <= {folder.name for folder in (tmp_path / "runs").iterdir()}
    assert run("fit-head", "--clf", "ridge", "--seeds", 2, "--name", "mine")[0] == 1


def test_seeds_that_change_nothing_say_so(
    run: Run, make_folder: Callable, embed: Callable[..., Embedding], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CLASSIFIERS, "mlp", SMALL_PROBE)
    counts = {"red": 6, "green": 6}
    embed(make_folder({"train": counts, "val": counts, "test": counts})).run()
    status, out, _ = run("fit-head", "--clf", "ridge,mlp", "--seeds", 2)
    assert status == 0
    assert (
        "the seed changes nothing for ridge: nothing in it is random, and the rows that validate stay the same" in out
    )
    assert "changes nothing" not in run("fit-head", "--clf", "ridge", "--seeds", 2, "--cv", 3)[1]
    assert "changes nothing" not in run("fit-head", "--clf", "ridge", "--seeds", 2, "--calibrate")[1]
    assert "changes nothing" not in run("fit-head", "--clf", "ridge")[1]


@pytest.mark.parametrize("flags", [(), ("--cv", 3)], ids=str)
def test_a_class_of_one_row_is_fitted_on(
    run: Run, make_folder: Callable, embed: Callable[..., Embedding], flags: Any
) -> None:
    counts = {"red": 6, "green": 6}
    embed(make_folder({"train": {**counts, "blue": 1}, "test": counts})).run()
    record = summary_of(run, "fit-head", "--clf", "ridge", *flags)
    assert "classes without validation rows: blue, a choice by validation rows knows nothing of them" in record["notes"]
    assert record["dataset"]["class_names"] == ["blue", "green", "red"]


@pytest.mark.parametrize(
    "workers",
    [
        ("--jobs", 2, "--backend", "threading"),
        *(pytest.param(each, marks=pytest.mark.slow) for each in (("--jobs", 2), "dask", "ray")),
    ],
    ids=str,
)
def test_the_result_does_not_depend_on_who_did_the_work(
    run: Run, tmp_path: Path, workers: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes and dask are slow; their quicker twins are threads here, and processes and dask in `test_sweep`."""
    run("embed", *QUICK)
    if workers == "dask":
        workers = ("--backend", "dask", "--scheduler", request.getfixturevalue("cluster"))
    elif workers == "ray":
        ray = pytest.importorskip("ray")
        request.addfinalizer(ray.shutdown)
        workers = ("--backend", "ray", "--jobs", 2)
    elif "threading" in workers:
        monkeypatch.setitem(CLASSIFIERS, "linear", SMALL_PROBE)
    asked = ("--clf", "ridge,lda,linear", "--seeds", 2, *FEW, "--device", "cpu")
    alone = summary_of(run, "fit-head", *asked, "--runs-dir", "alone")
    spread = summary_of(run, "fit-head", *asked, "--runs-dir", "spread", *workers)
    assert [comparable(r) for r in alone["runs"]] == [comparable(r) for r in spread["runs"]]
    assert alone["summary"] == spread["summary"]
    folders = sorted(folder.name for folder in (tmp_path / "alone").iterdir())
    assert folders == sorted(folder.name for folder in (tmp_path / "spread").iterdir())
    assert len(folders) == 6
    for name in folders:
        one, other = (read_run(tmp_path / where / name) for where in ("alone", "spread"))
        assert one.record["method"] == other.record["method"]
        for part, values in one.predictions.items():
            if part.endswith("scores"):
                np.testing.assert_allclose(other.predictions[part], values, rtol=1e-3, atol=1e-4)
            else:
                np.testing.assert_array_equal(other.predictions[part], values)


def test_runs_are_compared(run: Run, tmp_path: Path) -> None:
    run("embed", *QUICK)
    for clf in ("centroid", "knn"):
        summary_of(run, "fit-head", "--clf", clf, "--name", clf, *FEW)
    record = summary_of(
        run, "fit-head", "--clf", "ridge", "--name", "new", "--against", "centroid", "--against", "runs/knn", *FEW
    )
    assert record == json.loads((tmp_path / "runs/new/run.json").read_text())
    assert [each["run"] for each in record["comparisons"]] == ["centroid", "knn"]
    own = record["metrics"]["test"]["accuracy"]
    for each in record["comparisons"]:
        other = read_run(tmp_path / "runs" / each["run"]).record
        assert each["method"] == other["method"]
        assert each["difference"] == pytest.approx(own - other["metrics"]["test"]["accuracy"])
        low, high = each["ci95"]
        assert low <= each["difference"] <= high
        assert each["verdict"] in ("no significant difference", "better", "worse")
        assert each["p_value"] <= each["p_holm"] <= 1
    read_run(tmp_path / "runs/new")
    status, out, _ = run("fit-head", "--clf", "ridge", "--against", "new", *FEW)
    assert status == 0
    assert "no significant difference" in out
    status, _, err = run("fit-head", "--against", "gone")
    assert (status, err.count("\n")) == (1, 1)
    before = sorted((tmp_path / "runs").iterdir())
    status, _, err = run("fit-head", "--against", "new", "--limit", "test=8", *FEW)
    assert status == 1
    assert "--against runs/new: it was scored on other test rows (359 and 8, 351 ids are in one only)" in err
    assert sorted((tmp_path / "runs").iterdir()) == before


def test_several_heads_are_compared_with_the_best_by_validation(run: Run) -> None:
    run("embed", *QUICK)
    found = summary_of(run, "fit-head", "--clf", "centroid,ridge,knn", *FEW)
    val = {record["method"]: record["metrics"]["val"]["accuracy"] for record in found["runs"]}
    best = max(val, key=lambda method: val[method])
    assert {each["reference_method"] for each in found["comparisons"]} == {best}
    assert {each["method"] for each in found["comparisons"]} == set(val) - {best}
    assert "summary" not in found


def test_a_best_epoch_is_no_reference(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CLASSIFIERS, "linear", SMALL_PROBE)
    monkeypatch.setitem(CLASSIFIERS, "mlp", SMALL_PROBE)
    run("embed", *QUICK)
    status, out, _ = run("fit-head", "--clf", "linear,mlp,centroid", "--device", "cpu", *FEW)
    assert status == 0
    words = " ".join(out.split())  # of a title that is broken into lines
    assert "that of centroid, which has the highest validation accuracy, those of a best epoch aside" in words
    assert words.count("the validation accuracy is that of the best epoch on the rows that chose it") == 2
    lines = {line.split()[0]: line for line in out.splitlines() if "–" in line}
    assert ("*" in lines["linear"], "*" in lines["mlp"], "*" in lines["centroid"]) == (True, True, False)
    assert "* of the best epoch" in out
    status, out, _ = run("fit-head", "--rank", "--clf", "linear", "--device", "cpu", *FEW)
    assert status == 0
    assert "WARNING: validation accuracies of linear" in out


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        ({"linear": (0.9, None), "ridge": (0.7, None), "lda": (0.8, None)}, ("lda", ", those of a best epoch aside")),
        ({"ridge": (0.8, None), "lda": (0.8, None)}, ("ridge", "")),
        ({"linear": (0.8, None), "mlp": (0.9, None)}, None),
        ({"linear": (0.9, 0.6), "ridge": (0.7, 0.5)}, ("linear", "nested accuracy")),
        ({"linear": (0.9, 0.4), "ridge": (0.7, 0.5)}, ("ridge", "nested accuracy")),
    ],
)
@pytest.mark.parametrize("recorded", [True, False])  # runs of before have no such key
def test_the_reference_is_of_the_highest_accuracy_that_can_be_believed(
    heads: dict[str, tuple[float, float | None]], expected: tuple[str, str] | None, recorded: bool
) -> None:
    records: dict[str, dict[str, Any]] = {}
    for name, (val, nested) in heads.items():
        by_epochs = name in ("linear", "mlp")
        records[name] = {
            "params": {"epochs": 3} if by_epochs else {},
            "selection": {"nested": nested and {"accuracy": nested}},
            "metrics": {"val": {"accuracy": val}},
        }
        if recorded:
            records[name]["selection"]["val_is_of_best_epoch"] = by_epochs
    if expected is not None:
        name, highest = expected
        expected = name, highest if "nested" in highest else f"validation accuracy{highest}"
    assert reference_of(records) == expected


def test_a_calibrated_head_is_saved_as_it_predicts(run: Run, tmp_path: Path) -> None:
    run("embed", *QUICK)
    (path,) = (tmp_path / "features").glob("*.h5")
    status, out, _ = run("fit-head", "--clf", "ridge", "--cv", 4, "--nested", 3, "--calibrate", "--name", "c", *FEW)
    assert status == 0
    assert "log loss before" in out
    assert "the procedure, chosen anew in 3 folds" in out
    done = read_run(tmp_path / "runs/c")
    assert done.record["dataset"]["n_train"] == done.record["dataset"]["n_val"] == 60
    assert done.record["selection"]["validation"] == {"kind": "cv", "folds": 4, "error": "over folds"}
    head, meta = load_head(done.head)
    assert head.probabilistic
    assert meta["features"] == {"width": 96, "views": 1, "pooled": False}
    np.testing.assert_array_equal(head.scores(Cache.open(path).splits["test"].load()), done.predictions["test_scores"])


def test_caches_are_ranked_by_validation(run: Run, tmp_path: Path) -> None:
    run("embed", *QUICK)
    for cut in ("layer2", "layer4"):
        run("embed", *QUICK, "--cut", cut, "--storage", "float32")
    found = summary_of(run, "fit-head", "--rank")
    assert sorted(entry["features"] for entry in found["ranking"]) == [48, 96, 96]
    assert {entry["cut"]: entry["pooled"] for entry in found["ranking"]} == {"layer2": True, "layer4": False}
    val = [entry["val_accuracy"] for entry in found["ranking"]]
    assert val == sorted(val, reverse=True)
    assert (found["method"], found["ordered_by"]) == ("ridge", "val_accuracy")
    assert not (tmp_path / "runs").exists()
    spread = summary_of(run, "fit-head", "--rank", "--jobs", 2)
    kept = ("cache", "val_accuracy", "test_accuracy", "params")
    assert [[e[k] for k in kept] for e in spread["ranking"]] == [[e[k] for k in kept] for e in found["ranking"]]
    run("embed", *QUICK[:-1], "5")
    found = summary_of(run, "fit-head", "--rank", "--clf", "centroid")
    assert len(found["ranking"]) == 1  # the newest has other rows
    assert len(found["left_out"]) == 3
    _, out, _ = run("fit-head", "--rank", "--clf", "centroid")
    assert "(not used for the order)" in out
    assert "left out, its rows are not those of" in out
    assert run("fit-head", "--rank", "--dataset", "mnist")[0] == 1
    for flags in (["--report"], ["--name", "x"], ["--seeds", "2"], ["--clf", "all"]):
        assert run("fit-head", "--rank", *flags)[0] == 2


def test_caches_side_by_side_and_maps(run: Run, tmp_path: Path) -> None:
    run("embed", *QUICK)
    run("embed", *QUICK, "--cut", "layer3")
    vectors, maps = sorted((tmp_path / "features").glob("*.h5"), key=lambda p: not Cache.open(p).holds_vectors)
    record = summary_of(run, "fit-head", "--clf", "ridge", "--cache", vectors, "--cache", maps, "--pool")
    assert record["features"]["width"] == 96 + 192
    assert [part["file"] for part in record["cache"]["parts"]] == [vectors.name, maps.name]
    assert summary_of(run, "fit-head", "--clf", "ridge", "--pool")["features"] == {
        "width": 192,
        "views": 1,
        "pooled": True,
    }
    status, _, err = run("fit-head", "--clf", "ridge", "--cache", vectors, "--cache", maps)
    assert status == 1
    assert "holds maps" in err


def test_augmented_views_are_taken_or_not(run: Run) -> None:
    run("embed", *QUICK, "--views", 2)
    assert summary_of(run, "fit-head", "--clf", "ridge")["features"]["views"] == 3
    assert summary_of(run, "fit-head", "--clf", "ridge", "--views", "plain")["features"]["views"] == 1


def test_pictures_are_drawn(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run("embed", *QUICK)
    assert run("fit-head", "--clf", "knn", "--name", "knn", *FEW)[0] == 0
    status, out, _ = run("fit-head", "--clf", "lda", "--name", "lda", "--report", *FEW)
    assert status == 0
    assert "most confused" in out
    assert "reliability" in out
    assert run("fit-head", "--clf", "centroid", "--name", "centroid", *FEW)[0] == 0
    for name, pictures in {
        "knn": {"selection.png", "selection-temperature.png"},
        "lda": {"selection.png", "confusion.png", "reliability.png"},
        "centroid": set(),
    }.items():
        folder = tmp_path / "runs" / name
        assert {path.name for path in folder.glob("*.png")} == pictures
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.glob("*.png"))
        read_run(folder)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cv", "1"], "--cv 1: expected at least 2 folds"),
        (["--cv", "many"], "'many' is neither a number of folds nor loo"),
        (["--cv", "loo"], "--cv loo: logreg has no exact leave-one-out"),
        (["--cv", "3", "--no-refit"], "--no-refit keeps the one head"),
        (["--nested", "0"], "--nested 0: expected at least 2 folds"),
        (["--seeds", "0"], "--seeds 0: expected a whole number of at least 1"),
        (["--jobs", "0"], "--jobs 0: expected"),
        (["--backend", "dask"], "--backend dask needs the cluster's address"),
        (["--scheduler", "tcp://localhost:1"], "--scheduler is of --backend dask"),
        (["--clf", "ridge,ridge"], "'ridge,ridge' is no list of different classifiers"),
        (["--clf", "ridge,forest"], "invalid choice: 'forest' (choose from logreg, linear"),
        (["--clf", "ridge,lda", "--name", "x"], "--name names one run"),
        (["--shots", "1", "--rank"], "--rank makes no run"),
        (["--shots", "x"], "'x' is not of the form 1,2,5,10"),
        (["--fractions", "2"], "--fractions 2: expected numbers above 0"),
        (["--clf", "all", "--calibrate"], "--calibrate: knn chooses a temperature"),
    ],
    ids=" ".join,
)
def test_flags_that_make_no_sense_are_one_line(run: Run, cache: Cache, flags: list[str], message: str) -> None:
    status, _, err = run("fit-head", *flags)
    assert status == 2, err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("parser", "taken"),
    [(new_fit_head_parser, caches_of), (new_finetune_parser, cache_of)],
    ids=["fit-head", "finetune"],
)
def test_a_newer_cache_that_cannot_be_opened_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], parser: Callable[[], Parser], taken: Callable[..., Any]
) -> None:
    older = golden(tmp_path)
    age(older, 1)
    cut = golden(tmp_path, "golden-tiny-00000000.h5")
    cut.write_bytes(cut.read_bytes()[:5000])
    arguments, console = parser().parse_args(["--cache-dir", str(tmp_path)]), Console(json_wanted=False)
    found = taken(arguments, console)
    assert [cache.path for cache in (found if isinstance(found, list) else [found])] == [older]
    reason = f"{cut}: cut off, damaged, or no feature cache (5,000 of 241,760 bytes); embed again"
    assert capsys.readouterr().out == f"PASSED OVER {reason} (took {older.name}, which is older)\n"
    older.unlink()
    with pytest.raises(CacheError) as caught:
        taken(arguments, console)
    assert f"(found {reason})" in str(caught.value)


def test_what_did_not_converge_is_said_and_recorded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("embed", *QUICK)
    monkeypatch.setattr("heads.squared_hinge.GAP", -1.0)
    status, out, err = run("fit-head", "--clf", "svm", *FEW, "--json")
    assert status == 0
    record = json.loads(out)
    assert record["converged"] is False
    assert any("(relative) above its minimum" in note for note in record["notes"])
    assert "WARNING: did not converge in the refit: L-BFGS stopped after" in err
    n_tried = sum(candidate["tried"] for candidate in record["selection"]["candidates"])
    assert (
        f"  {n_tried - 1} of the other {len(record['selection']['candidates']) - 1} candidates did not converge" in err
    )
