"""What an audit finds where the truth is planted: labels, outliers, classes, and which of two copies may go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from selecting import Digits

from featcache.common.errors import UserError
from heads.audit.audited_rows import AuditedRows
from heads.audit.classes import few_rows, nearly_one
from heads.audit.directions import about_mean, about_origin
from heads.audit.duplicate_findings import duplicate_findings
from heads.audit.duplicates import NearPairs, calibrated, copies, near_pairs, pictures
from heads.audit.findings import KINDS, Finding, ranked
from heads.audit.images_at_hand import pixel_distance, square
from heads.audit.out_of_fold import OutOfFold, out_of_fold
from heads.audit.outliers import outliers
from heads.audit.page import ADVICE
from heads.audit.suspects import suspects
from heads.classifiers import CLASSIFIERS
from heads.features import ArrayFeatures
from heads.fitting import Folds, Params, Trial
from heads.logreg import LogReg


def rows_of(X: np.ndarray, labels: list[int], split: list[int], content: list[int]) -> AuditedRows:
    return AuditedRows(
        class_names=("a", "b"),
        split_names=("train", "test"),
        split=np.array(split),
        ids=tuple(f"{i}.png" for i in range(len(X))),
        labels=np.array(labels),
        content=np.array(content, np.uint8)[:, None] * np.ones(16, np.uint8),
        features=ArrayFeatures(X.astype(np.float32)),
        damaged=(),
    )


def no_pairs() -> NearPairs:
    none = np.empty(0)
    whole = none.astype(np.int64)
    return NearPairs(first=whole, second=whole, cosine=none, pixels=none, same=none.astype(bool))


def test_flipped_labels_are_suspected(digits: Digits) -> None:
    rng = np.random.default_rng(0)
    y = digits.y.copy()
    flipped = np.sort(rng.choice(len(y), 30, replace=False))
    y[flipped] = (y[flipped] + rng.integers(1, 10, 30)) % 10
    seen = out_of_fold(ArrayFeatures(digits.X), y, np.arange(len(y)), n_classes=10)
    np.testing.assert_array_equal(seen.rows, np.arange(len(y)))
    found = suspects(seen.probabilities, y)
    hits = np.isin(found.rows, flipped)
    assert hits.sum() >= 25
    assert hits.mean() >= 0.9
    assert (found.suggested[hits] == digits.y[found.rows[hits]]).mean() >= 0.9
    assert (np.diff(found.margin) <= 0).all()


def test_copies_do_not_vouch_for_each_other(digits: Digits) -> None:
    """A wrongly labelled image with five copies: heads that saw a copy would believe the label."""
    n, wrong = 200, np.full(5, 7)
    X = np.concatenate([digits.X[:n], digits.X[wrong]])
    y = np.concatenate([digits.y[:n], digits.y[wrong]])
    group = np.concatenate([[7], np.arange(n, n + 5)])
    y[group] = (y[7] + 1) % 10
    picture = np.concatenate([np.arange(n), wrong])
    seen = out_of_fold(ArrayFeatures(X), y, picture, n_classes=10)
    assert (seen.probabilities[group] == seen.probabilities[7]).all()
    assert set(group) <= set(suspects(seen.probabilities, y).rows)
    naive = out_of_fold(ArrayFeatures(X), y, np.arange(n + 5), n_classes=10)
    assert not set(group) <= set(suspects(naive.probabilities, y).rows)


def test_rows_without_label_or_company_are_passed_over(digits: Digits) -> None:
    y = digits.y[:100].copy()
    y[3], y[5] = -1, 10
    seen = out_of_fold(ArrayFeatures(digits.X[:100]), y, np.arange(100), n_classes=11)
    np.testing.assert_array_equal(seen.rows, np.delete(np.arange(100), [3, 5]))
    with pytest.raises(UserError, match="fewer than two classes have two labelled pictures"):
        out_of_fold(ArrayFeatures(digits.X), np.zeros(600, np.int64), np.arange(600), n_classes=2)


def test_heads_that_did_not_converge_are_noted(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(LogReg):
        def search(self, chain: list[Params], folds: Folds) -> Iterator[Trial]:
            for trial in super().search(chain[-1:], folds):
                stuck = tuple(replace(fitted, converged=False, message="it did not move") for fitted in trial.fitted)
                yield replace(trial, fitted=stuck)

    monkeypatch.setitem(CLASSIFIERS, "logreg", Stuck(C=(0.01,)))
    seen = out_of_fold(ArrayFeatures(digits.X[:100]), digits.y[:100], np.arange(100), n_classes=10)
    assert "did not converge: it did not move" in seen.notes


def test_sure_and_right_heads_suspect_nothing() -> None:
    y = np.arange(40) % 4
    sure = np.full((40, 4), 0.01)
    sure[np.arange(40), y] = 0.97
    assert len(suspects(sure, y).rows) == 0
    assert nearly_one(sure, y, [str(i) for i in y]) == []


def test_odd_images_are_outliers(digits: Digits) -> None:
    rng = np.random.default_rng(0)
    odd = np.stack([rng.permutation(row) for row in digits.X[:4]])
    X = about_origin(ArrayFeatures(np.concatenate([digits.X, odd]).astype(np.float32)))
    found = outliers(X, np.arange(604))
    assert set(range(600, 604)) <= set(found.rows)
    assert len(found.rows) <= 16
    assert (found.deviations > 3.5).all()
    assert len(outliers(X, np.arange(2)).rows) == 0


def test_outliers_by_a_sample_are_much_the_same(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    odd = np.stack([rng.permutation(row) for row in digits.X[:2]])
    X = about_origin(ArrayFeatures(np.concatenate([digits.X, odd]).astype(np.float32)))
    monkeypatch.setattr("heads.audit.outliers._BANK", 150)
    assert set(outliers(X, np.arange(602)).rows[:2]) == {600, 601}


def test_classes_that_are_one_are_named() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 400)
    coin = rng.random((400, 1))
    twins = np.concatenate([coin, 1 - coin, np.zeros((400, 2))], axis=1)
    apart = np.eye(4)[y]
    (pair,) = nearly_one(np.where(y[:, None] < 2, twins, apart), y, [str(i) for i in range(400)])
    assert (pair.a, pair.b, pair.n_rows) == (0, 1, int((y < 2).sum()))
    assert pair.interval[0] < 0.5 < pair.interval[1]
    assert all(y[int(name)] < 2 for name in pair.examples)
    assert few_rows(np.repeat([0, 1, 2], [100, 9, 10]), 4) == [(3, 0), (1, 9)]


def test_what_is_unusual_is_learned_from_the_set(digits: Digits) -> None:
    rng = np.random.default_rng(0)
    near = digits.X[:6] + rng.normal(0, 0.1, (6, 64))
    X = np.concatenate([digits.X, near]).astype(np.float32)
    rows = rows_of(X, [0] * 606, [0] * 606, [i % 251 for i in range(606)])
    rows.content[:, 0] = np.arange(606) // 251
    found = near_pairs(rows, about_mean(rows.features), calibrated(about_mean(rows.features)), None)
    pairs = set(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert {(i, 600 + i) for i in range(6)} <= pairs
    assert len(pairs) <= 12
    assert found.same.all()
    assert (pictures(rows, found)[600:] <= np.arange(6)).all()


def test_of_two_copies_the_test_row_stays() -> None:
    rows = rows_of(np.eye(6), [0, 0, 1, 0, 1, -1], [0, 1, 0, 0, 0, 1], [1, 1, 2, 3, 3, 2])
    seen = OutOfFold(
        rows=np.array([0, 1, 2, 3, 4]),
        probabilities=np.array([[0.9, 0.1]] * 3 + [[0.2, 0.8]] * 2),
        C=1.0,
        n_folds=2,
        notes=(),
    )
    np.testing.assert_array_equal(copies(rows), [0, 0, 2, 3, 3, 2])
    found = {finding.id: finding for finding in duplicate_findings(rows, no_pairs(), seen)}
    assert set(found) == {"0.png", "2.png", "3.png"}
    assert (found["0.png"].kind, found["0.png"].other_id, found["0.png"].exclude) == ("exact-duplicate", "1.png", True)
    conflict = found["3.png"]
    assert (conflict.kind, conflict.label, conflict.suggested_label) == ("label-conflict", "a", "b")
    assert (found["2.png"].other_split, found["2.png"].other_label, found["2.png"].is_leak) == ("test", "", True)


def test_two_copies_in_test_are_left_to_the_user() -> None:
    rows = rows_of(np.eye(2), [0, 0], [1, 1], [1, 1])
    (finding,) = duplicate_findings(rows, no_pairs(), None)
    assert (finding.id, finding.exclude, finding.is_leak) == ("1.png", False, False)


def test_pixels_tell_copies_from_others() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8).astype(np.float64)
    image = (image + np.linspace(0, 200, 80)[None, :, None]) / 2
    picture = square(image.astype(np.uint8))
    assert picture.shape == (32, 32, 3)
    assert pixel_distance(picture, picture) == 0
    assert pixel_distance(picture, picture[:, ::-1]) == 0
    assert pixel_distance(picture, square((image[::-1] * 0.99).astype(np.uint8))) > 0.15
    assert pixel_distance(picture, square((image * 0.99).astype(np.uint8))) < 0.05
    flat = np.full((32, 32, 3), 9, np.uint8)
    assert pixel_distance(flat, flat + np.uint8(200)) > 1


def test_findings_are_ranked_by_kind_leak_and_score() -> None:
    told = [
        Finding(kind="outlier", score=9),
        Finding(kind="exact-duplicate", score=1, split="train", id="x", other_split="train", other_id="y"),
        Finding(kind="exact-duplicate", score=1, split="train", id="z", other_split="test", other_id="y"),
        Finding(kind="outlier", score=10),
    ]
    assert [(f.kind, f.id, f.score) for f in ranked(told)] == [
        ("exact-duplicate", "z", 1),
        ("exact-duplicate", "x", 1),
        ("outlier", "", 10),
        ("outlier", "", 9),
    ]
    assert ADVICE.keys() == KINDS.keys()
