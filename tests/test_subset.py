"""Subsets: which rows are kept, in what order, and that the seed decides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.common.errors import UsageError, UserError
from featcache.tables.subset import Subset, carve

NAMES = ("ant", "bee", "cat")
LABELS = {"train": np.tile([0, 1, 2], 10), "test": np.array([2, 1, 0, -1])}


def test_classes_are_kept_in_every_split_and_renumbered_in_the_order_given() -> None:
    rows, names, new_label = Subset(classes=("cat", "ant")).choose(LABELS, NAMES)
    assert names == ("cat", "ant")
    assert new_label[LABELS["train"][rows["train"]]].tolist() == [1, 0] * 10
    assert new_label[LABELS["test"][rows["test"]]].tolist() == [0, 1]


def test_without_rules_all_rows_stay_unlabelled_ones_too() -> None:
    rows, names, new_label = Subset().choose(LABELS, NAMES)
    assert names == NAMES
    assert len(rows["train"]) == 30
    assert new_label[LABELS["test"][rows["test"]]].tolist() == [2, 1, 0, -1]


def test_limit_takes_the_first_rows_of_the_splits_that_it_names() -> None:
    rows, _, _ = Subset(limit={"train": 7}).choose(LABELS, NAMES)
    assert rows["train"].tolist() == list(range(7))
    assert len(rows["test"]) == 4


def test_per_class_and_fraction_thin_train_alone() -> None:
    for subset, count in ((Subset(per_class=4), 4), (Subset(fraction=0.25), 2)):
        rows, _, _ = subset.choose(LABELS, NAMES)
        assert np.bincount(LABELS["train"][rows["train"]]).tolist() == [count] * 3
        assert len(rows["test"]) == 4
        assert (np.diff(rows["train"]) > 0).all()
    first, _, _ = Subset(per_class=2, take="first").choose(LABELS, NAMES)
    assert first["train"].tolist() == list(range(6))


def test_the_seed_decides() -> None:
    chosen = [Subset(per_class=4, seed=seed).choose(LABELS, NAMES)[0]["train"].tolist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction": 0.0}, "--fraction 0: expected a number above 0"),
        ({"fraction": 1.5}, "--fraction 1.5"),
        ({"per_class": 0}, "--per-class 0: expected"),
        ({"per_class": 2, "fraction": 0.5}, "exclude one another"),
        ({"limit": {"train": 0}}, "--limit train=0"),
        ({"classes": ("ant",)}, "two or more"),
    ],
)
def test_rules_out_of_range(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Subset(**settings)


def test_rules_that_the_rows_cannot_meet() -> None:
    with pytest.raises(UserError, match="--per-class 11: class 'ant' has 10 training images; ask for at most 10"):
        Subset(per_class=11).choose(LABELS, NAMES)
    with pytest.raises(UsageError, match="unknown class in --classes 'cta': did you mean cat"):
        Subset(classes=("ant", "cta")).choose(LABELS, NAMES)
    with pytest.raises(UsageError, match="unknown split in --limit 'tset': did you mean test"):
        Subset(limit={"tset": 3}).choose(LABELS, NAMES)


@given(
    st.lists(st.integers(0, 4), min_size=10, max_size=200).filter(lambda y: min(np.bincount(y)[np.unique(y)]) > 1),
    st.floats(0.01, 0.99),
    st.integers(0, 9),
)
def test_carving_is_a_partition_with_every_class_in_both_parts(y: list[int], fraction: float, seed: int) -> None:
    labels = np.array(y)
    kept, carved = carve(labels, fraction=fraction, seed=seed)
    assert sorted([*kept, *carved]) == list(range(len(y)))
    assert set(labels[kept]) == set(labels[carved]) == set(y)
    for label in set(y):
        total = (labels == label).sum()
        assert abs((labels[carved] == label).sum() - fraction * total) <= 1
