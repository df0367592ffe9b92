"""A head from cached rows: test labels decide nothing, and what is reported is what was predicted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from featcache.cache import Cache
from featcache.embedding import Embedding
from featcache.errors import UserError
from featcache.subset import Subset
from heads.classifiers import CLASSIFIERS
from heads.head_run import HeadRun, fit_head
from heads.rows import Rows, load_rows


@pytest.fixture
def rows(cache: Cache) -> Rows:
    return load_rows(cache, val_fraction=0.2)


def chosen(run: HeadRun) -> dict[str, object]:
    """All that a run says of itself, test metrics and times aside."""
    candidates = [{k: v for k, v in c.items() if k != "seconds"} for c in run.selection.candidates]
    return {
        "params": run.selection.params,
        "candidates": candidates,
        "how": run.selection.how,
        "metrics": {split: metrics for split, metrics in run.metrics.items() if split != "test"},
        "head": {name: array.tobytes() for name, array in run.head.arrays().items()},
        "scores": run.predictions["test_scores"].tobytes(),
    }


@pytest.mark.parametrize("clf", CLASSIFIERS)
def test_permuting_the_test_labels_changes_test_metrics_alone(rows: Rows, clf: str) -> None:
    swapped = replace(rows, test=replace(rows.test, labels=1 - rows.test.labels))
    plain, permuted = fit_head(rows, clf), fit_head(swapped, clf)
    assert chosen(plain) == chosen(permuted)
    assert plain.metrics["test"].accuracy == pytest.approx(1 - permuted.metrics["test"].accuracy)
    assert plain.metrics["test"] != permuted.metrics["test"]


def test_rows_are_split_once_and_wholly(cache: Cache, rows: Rows) -> None:
    ids = [*rows.train.ids, *rows.val.ids]
    assert sorted(ids) == sorted(cache.splits["train"].ids)
    assert len(rows.val) == 8
    assert rows.test.ids == cache.splits["test"].ids
    split = cache.splits["train"]
    by_id = dict(zip(split.ids, split.load(), strict=True))
    for part in (rows.train, rows.val):
        np.testing.assert_array_equal(part.features, np.stack([by_id[name] for name in part.ids]))
    assert load_rows(cache, val_fraction=0.2).fingerprint == rows.fingerprint
    assert load_rows(cache, val_fraction=0.2, seed=1).fingerprint != rows.fingerprint


def test_a_set_with_its_own_validation_keeps_it(make_folder: Callable, embed: Callable[..., Embedding]) -> None:
    counts = {"red": 5, "green": 4}
    cache = embed(make_folder({"train": counts, "val": counts, "test": counts})).run().cache
    rows = load_rows(cache)
    assert all(name.startswith("val/") for name in rows.val.ids)
    assert "validation is the set's own split: 9 rows" in rows.notes
    refitted, kept = fit_head(rows, "ridge"), fit_head(rows, "ridge", refit=False)
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
    with pytest.raises(UserError, match="class 'green' has one training row"):
        load_rows(cache, subset=Subset(per_class=1))
