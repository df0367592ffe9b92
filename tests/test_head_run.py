"""A head from cached rows: test labels decide nothing, and what is reported is what was predicted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featcache.cache.cache_file import Cache
from featcache.common.errors import UserError
from featcache.embedding.job import Embedding
from featcache.tables.subset import Subset
from heads.classifiers import CLASSIFIERS
from heads.evidence.metrics import evaluate
from heads.head_run import HeadRun, counted, fit_head, head_meta, run_record
from heads.recipe import Recipe
from heads.rows import Rows, load_rows
from heads.runs import read_run, write_run
from heads.saved import load_head


@pytest.fixture
def rows(cache: Cache) -> Rows:
    return load_rows(cache, val_fraction=0.2)


def chosen(run: HeadRun) -> dict[str, object]:
    """All that a run says of itself, test metrics and times aside."""
    candidates = [{k: v for k, v in c.items() if k != "seconds"} for c in run.selection.candidates]
    calibration = run.calibration and {k: v for k, v in run.calibration.items() if k != "test"}
    return {
        "params": run.selection.params,
        "candidates": candidates,
        "how": run.selection.how,
        "metrics": {split: metrics for split, metrics in run.metrics.items() if split != "test"},
        "nested": run.nested,
        "calibration": calibration,
        "head": {name: array.tobytes() for name, array in run.head.arrays().items()},
        "scores": run.predictions["test_scores"].tobytes(),
    }


RECIPES = [
    *(Recipe(clf=clf) for clf in CLASSIFIERS),
    Recipe(clf="ridge", cv=3, calibrate=True, nested=2, rule="one-se", select_by="balanced-accuracy"),
    Recipe(clf="lda", cv="loo", calibrate=True, class_weight="balanced"),
    Recipe(clf="ridge", refit=False, calibrate=True),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe.clf}-{recipe.cv}")
def test_permuting_the_test_labels_changes_test_metrics_alone(rows: Rows, recipe: Recipe) -> None:
    swapped = replace(rows, test=replace(rows.test, labels=1 - rows.test.labels))
    plain, permuted = fit_head(rows, recipe), fit_head(swapped, recipe)
    assert chosen(plain) == chosen(permuted)
    assert plain.metrics["test"].accuracy == pytest.approx(1 - permuted.metrics["test"].accuracy)
    assert plain.metrics["test"] != permuted.metrics["test"]


@pytest.mark.parametrize("recipe", RECIPES[-3:], ids=lambda recipe: f"{recipe.clf}-{recipe.cv}")
def test_the_record_is_of_what_was_predicted(rows: Rows, cache: Cache, recipe: Recipe, tmp_path: Path) -> None:
    fitted = fit_head(rows, recipe)
    record = run_record([cache], rows, fitted, command="fit-head")
    predictions = fitted.predictions
    write_run(tmp_path / "run", record=record, predictions=predictions, head=fitted.head, head_meta=head_meta(record))
    read = read_run(tmp_path / "run")
    assert read.record == json.loads(json.dumps(record))
    dataset = record["dataset"]
    scored = rows.val if recipe.cv is None else rows.dev
    assert dataset["n_val"] == len(scored)
    assert dataset["n_train"] == (len(rows.train) if recipe.cv is None else len(rows.dev))
    assert read.predictions["val_ids"].tolist() == list(scored.ids)
    np.testing.assert_array_equal(read.predictions["val_labels"], scored.labels)
    for split in ("val", "test"):
        labels, scores = read.predictions[f"{split}_labels"], read.predictions[f"{split}_scores"]
        metrics = evaluate(scores, labels, 2, probabilistic=True)
        assert record["metrics"][split] == json.loads(json.dumps(metrics.to_json()))
        after = record["calibration"][split]["after"]
        assert (after["log_loss"], after["ece"]) == (metrics.log_loss, metrics.ece)
    assert set(record["calibration"]) == {"temperature", "rows", "wrong", "folds", "judged", "val", "test"}
    assert record["calibration"]["rows"] == len(rows.dev)  # by folds if rows are held out
    assert record["selection"]["val_is_of_best_epoch"] is False
    val = record["calibration"]["val"]
    assert val["after"]["log_loss"] <= val["before"]["log_loss"]
    head, _ = load_head(read.head)
    np.testing.assert_array_equal(head.scores_of(rows.test.features), read.predictions["test_scores"])
    selection = record["selection"]
    kind = {None: "holdout", 3: "cv", "loo": "loo"}[recipe.cv]
    assert selection["validation"]["kind"] == kind
    assert (selection["nested"] is not None) == (recipe.nested is not None)


def test_metrics_of_rows_in_blocks_are_those_of_all(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    head = fit_head(rows, "ridge").head
    whole = evaluate(head.scores_of(rows.dev.features), rows.dev.labels, 2, head.probabilistic, intervals=False)
    monkeypatch.setattr("heads.head_run._BLOCK_SCORES", 14)
    asked = []
    scores = type(head).scores
    monkeypatch.setattr(type(head), "scores", lambda self, X: asked.append(len(X)) or scores(self, X))
    assert counted(head, rows.dev.features, rows.dev.labels, 2) == whole
    assert max(asked) == 7
    assert sum(asked) == len(rows.dev)


def test_features_of_several_caches_are_one_head(cache: Cache, folder: Path, embed: Callable[..., Embedding]) -> None:
    other = embed(folder, cut=4).run().cache
    both = load_rows([cache, other], val_fraction=0.2, pool_maps=True)
    fitted = fit_head(both, "ridge")
    record = run_record([cache, other], both, fitted, command="")
    assert fitted.head.n_features == 96 + 192 == record["features"]["width"]
    assert record["features"]["pooled"]
    assert [part["fingerprint"] for part in record["cache"]["parts"]] == [cache.fingerprint, other.fingerprint]
    assert record["encoder"]["parts"] == [cache.encoder, other.encoder]
    assert record["encoder_fingerprint"] not in (cache.encoder_fingerprint, other.encoder_fingerprint)
    trunks = sum(each.provenance["trunk_parameters"] for each in (cache, other))
    assert record["total_params"] == trunks + fitted.head.n_parameters


def test_rows_are_split_once_and_wholly(cache: Cache, rows: Rows) -> None:
    ids = [*rows.train.ids, *rows.val.ids]
    assert sorted(ids) == sorted(cache.splits["train"].ids)
    assert len(rows.val) == 8
    assert rows.test.ids == cache.splits["test"].ids
    split = cache.splits["train"]
    by_id = dict(zip(split.ids, split.load(), strict=True))
    for part in (rows.train, rows.val):
        np.testing.assert_array_equal(part.features.load(), np.stack([by_id[name] for name in part.ids]))
    assert load_rows(cache, val_fraction=0.2).fingerprint == rows.fingerprint
    assert load_rows(cache, val_fraction=0.2, seed=1).fingerprint != rows.fingerprint


def test_a_set_with_its_own_validation_keeps_it(make_folder: Callable, embed: Callable[..., Embedding]) -> None:
    counts = {"red": 5, "green": 4}
    cache = embed(make_folder({"train": counts, "val": counts, "test": counts})).run().cache
    rows = load_rows(cache)
    assert all(name.startswith("val/") for name in rows.val.ids)
    assert "validation is the set's own split: 9 rows" in rows.notes
    refitted, kept = fit_head(rows, "ridge"), fit_head(rows, Recipe(clf="ridge", refit=False))
    assert kept.head is kept.selection.val_head
    assert refitted.metrics["val"] == kept.metrics["val"]
    assert not np.array_equal(refitted.predictions["test_scores"], kept.predictions["test_scores"])


def test_rows_that_leave_a_class_or_a_split_empty_are_refused(
    make_folder: Callable, embed: Callable[..., Embedding]
) -> None:
    counts = {"train": {"a": 9, "b": 9, "c": 9}, "test": {"a": 3, "b": 0, "c": 0}}
    cache = embed(make_folder(counts)).run().cache
    with pytest.raises(UserError, match="class 'c' has no training images left"):
        load_rows(cache, subset=Subset(limit={"train": 18}))
    with pytest.raises(UserError, match="no usable test rows are left"):
        load_rows(cache, subset=Subset(classes=("b", "c")))


def test_how_the_rows_were_chosen_is_told(cache: Cache) -> None:
    chosen = load_rows(cache, subset=Subset(per_class=9), val_fraction=0.2).chosen
    assert chosen == {"subset": {"per_class": 9, "take": "random", "seed": 0}, "val_fraction": 0.2, "seed": 0}


def test_maps_and_rows_too_few_are_refused(cache: Cache, folder: object, embed: Callable[..., Embedding]) -> None:
    with pytest.raises(UserError, match="holds maps .cut after layer1., and heads need vectors"):
        load_rows(embed(folder, cut=2).run().cache)
    with pytest.raises(UserError, match="no class has two training rows"):
        load_rows(cache, subset=Subset(per_class=1))
