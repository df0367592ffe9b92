"""A run's folder: what was written comes back, and what is no whole run is refused by what is wrong with it."""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_predictors import C, make_heads

from featcache.common.errors import UserError
from heads.runs import peak_rss_mb, read_run, reset_peak_rss, write_run
from heads.saved import load_head

METRICS = {
    "accuracy": 0.5, "accuracy_ci95": [0.2, 0.8], "top5": None, "balanced_accuracy": 0.5, "macro_f1": 0.4,
    "log_loss": None, "ece": 0.1,
}  # fmt: skip
RECORD: dict[str, Any] = {
    "schema": 1, "kind": "head", "method": "svm", "command": "fit-head --clf svm", "created": "2026-11-22T08:00:00Z",
    "seed": 0, "encoder": {"backbone": "resnet18"}, "source": "cache", "augment": "none", "params": {"C": 0.1},
    "dataset": {"name": "d", "fingerprint": "f", "class_names": list("abc"), "n_train": 9, "n_val": 4, "n_test": 6},
    "selection": {"candidates": [{"params": {"C": 0.1}, "tried": True}]}, "converged": True, "notes": [],
    "trainable_params": 24, "total_params": 1024, "frozen_sha256": None, "history": [], "environment": {"numpy": "2"},
    "metrics": dict.fromkeys(("train", "val", "test"), METRICS),
    "cost": {"embed_s": 1.5, "fit_s": 0.2, "epoch_s": None, "peak_rss_mb": 300.0, "device": "cpu"},
}  # fmt: skip


def predictions() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: values
        for split, n in (("val", 4), ("test", 6))
        for name, values in {
            f"{split}_ids": np.array([f"{split}/Käfer/{i}.jpg" for i in range(n)]),
            f"{split}_labels": rng.integers(0, C, n),
            f"{split}_scores": rng.normal(size=(n, C)).astype(np.float32),
        }.items()
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_run(
        tmp_path / "run", record=RECORD, predictions=predictions(), head=make_heads()["linear"], head_meta={"a": 1}
    )
    return tmp_path / "run"


def test_what_was_written_is_read(folder: Path) -> None:
    run = read_run(folder)
    assert run.record == RECORD
    assert run.predictions.keys() == predictions().keys()
    for name, values in predictions().items():
        np.testing.assert_array_equal(run.predictions[name], values)
        assert run.predictions[name].dtype == values.dtype
    assert load_head(run.head)[1] == {"a": 1}


def test_what_older_and_newer_runs_have_besides_is_taken(folder: Path) -> None:
    nested = {"folds": 3, "accuracy": 0.5, "accuracy_ci95": [0.2, 0.8], "params": [{"C": 0.1}] * 3}
    more = changed(calibration={"temperature": 1.5}, comparisons=[{"run": "x"}], features={"width": 2}, later=1)
    more["selection"]["nested"] = nested
    more["metrics"]["test"]["log_loss_ci95"] = [0.1, 0.2]
    (folder / "run.json").write_text(json.dumps(more))
    assert read_run(folder).record == more
    del more["notes"]
    (folder / "run.json").write_text(json.dumps(more))
    assert read_run(folder).record == more


def changed(**values: object) -> dict[str, Any]:
    """The record with values changed at paths like metrics__val__accuracy, or missing where they are ``...``."""
    record = json.loads(json.dumps(RECORD))
    for path, value in values.items():
        *above, key = path.split("__")
        place = record
        for name in above:
            place = place[name]
        if value is ...:
            del place[key]
        else:
            place[key] = value
    return record


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schema": 2}, "has schema 2, this library reads 1: update featcache"),
        ({"schema": "1"}, "has no schema"),
        ({"seed": ...}, "run.json has no seed"),
        ({"seed": True}, "seed is of the type bool, expected int"),
        ({"dataset": []}, "dataset is of the type list, expected dict"),
        ({"dataset__n_val": 4.0}, "dataset.n_val is of the type float"),
        ({"dataset__class_names": ["a", 1, "c"]}, "class_names is no list of names"),
        ({"dataset__class_names": []}, "class_names is no list of names"),
        ({"metrics__val": ...}, "run.json has no metrics.val"),
        ({"metrics__test__accuracy": "0.5"}, "metrics.test.accuracy is of the type str, expected int or float"),
        ({"metrics__test__accuracy_ci95": [0.2]}, "metrics.test.accuracy_ci95 is no pair of numbers"),
        ({"comparisons": {}}, "comparisons is of the type dict, expected list"),
        ({"calibration": 1.5}, "calibration is of the type float, expected dict or NoneType"),
        ({"cost__device": None}, "cost.device is of the type NoneType, expected str"),
        ({"dataset__n_test": 7}, r"test_ids is \(6,\), run.json says \(7,\)"),
        ({"dataset__class_names": ["a", "b"]}, r"val_scores is \(4, 3\), run.json says \(4, 2\)"),
    ],
)
def test_a_record_of_other_types_is_refused(values: dict[str, object], message: str, folder: Path) -> None:
    (folder / "run.json").write_text(json.dumps(changed(**values)))
    with pytest.raises(UserError, match=message):
        read_run(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "damaged, or no run"),
        ("[1]", "JSON of the type list, expected an object"),
        ('{"schema": NaN}', "the number NaN"),
        ('{"schema": 1e999}', "the number inf"),
        ('{"schema": ' + "1" * 5000 + "}", "damaged, or no run"),
        ('{"schema": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"schema": ' + "[" * 40 + "]" * 40 + "}", "nested too deeply"),
        ('{"schema": "\\ud800"}', "damaged, or no run"),
        ('{"schema": "' + "a" * (9 << 20) + '"}', "bytes of JSON, expected 8,388,608 at most"),
    ],
)
def test_text_that_is_no_plain_json_is_refused(text: str, message: str, folder: Path) -> None:
    (folder / "run.json").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_run(folder)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("val_ids"), "predictions.npz holds"),
        (lambda p: p.update(more=p["val_ids"]), "predictions.npz holds"),
        (lambda p: p.update(val_ids=np.arange(4)), "ids, labels and scores of val are int64, int64, float32"),
        (lambda p: p.update(test_labels=np.zeros(6, np.int32)), "scores of test are <U16, int32, float32"),
        (lambda p: p.update(test_scores=np.zeros((6, 3), np.float16)), "float16"),
        (lambda p: p.update(test_labels=np.full(6, 3)), "test_labels are outside 0..2"),
        (lambda p: p.update(test_labels=np.full(6, -1)), "test_labels are outside 0..2"),
        (lambda p: p.update(val_labels=p["val_labels"][:3]), r"val_labels is \(3,\)"),
        (lambda p: p.update(val_scores=np.full((4, 3), np.nan)), "not finite"),
        (lambda p: p.update(val_ids=np.array(["a", "b", "c", "a"])), "names a row twice"),
        (lambda p: p.update(val_ids=np.array(["a", "b", "c", "\ud800"])), "text that is no Unicode"),
        (lambda p: p.update(val_ids=np.array([{}, 2, 3, 4], dtype=object)), "dtype object"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(change: Callable[[dict], object], message: str, folder: Path) -> None:
    arrays = predictions()
    change(arrays)
    np.savez(folder / "predictions.npz", allow_pickle=True, **arrays)
    with pytest.raises(UserError, match=message):
        read_run(folder)


def test_a_folder_that_is_no_run_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder of a run"):
        read_run(tmp_path / "gone")
    (folder / "predictions.npz").unlink()
    with pytest.raises(UserError, match="not all of it"):
        read_run(folder)
    (folder / "run.json").unlink()
    (folder / "run.json").mkdir()
    with pytest.raises(UserError, match="a folder, not a regular file"):
        read_run(folder)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory can be reset on Linux alone")
def test_the_peak_of_memory_can_be_begun_anew() -> None:
    reset_peak_rss()
    before = peak_rss_mb()
    with mmap.mmap(-1, 200_000_000) as held:  # not of malloc, which may keep what is freed
        held.write(bytes(200_000_000))
        high = peak_rss_mb()
    assert high >= before + 190
    reset_peak_rss()
    assert peak_rss_mb() <= high - 150
