"""The metrics against scikit-learn and the formulas they are named after."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from sklearn import metrics as referee

from heads.evidence import calibration
from heads.evidence.bootstrap import calibration_interval, confusion_intervals, mean_interval
from heads.evidence.metrics import Tally, calibration_error, confusion, evaluate, per_class, softmax, wilson
from heads.predictors import ABSENT


@pytest.fixture
def scored() -> tuple[np.ndarray, np.ndarray]:
    """Logits (500, 8) that are right more often than not, and labels; class 6 is in neither, 7 only predicted."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 6, 500)
    scores = rng.normal(size=(500, 8))
    scores[np.arange(500), y] += 1.5
    scores[:, 6] -= 20
    return scores, y


def test_scikit_learn_agrees(scored: tuple[np.ndarray, np.ndarray]) -> None:
    scores, y = scored
    pred, p = scores.argmax(axis=1), softmax(scores)
    got = evaluate(scores, y, 8, True)
    assert 7 in pred
    assert got.accuracy == pytest.approx(referee.accuracy_score(y, pred))
    seen = np.isin(pred, y)  # its balanced accuracy warns of the others
    assert got.balanced_accuracy == pytest.approx(referee.balanced_accuracy_score(y, np.where(seen, pred, (y + 1) % 6)))
    assert got.macro_f1 == pytest.approx(referee.f1_score(y, pred, average="macro"))
    assert got.log_loss == pytest.approx(referee.log_loss(y, p, labels=np.arange(8)))
    assert got.top5 == pytest.approx(referee.top_k_accuracy_score(y, scores, k=5, labels=np.arange(8)))
    assert (confusion(y, pred, 8) == referee.confusion_matrix(y, pred, labels=np.arange(8))).all()
    each = per_class(y, pred, 8)
    expected = referee.precision_recall_fscore_support(y, pred, labels=np.arange(8), zero_division=0.0)
    for mine, theirs in zip((each.precision, each.recall, each.f1, each.support), expected, strict=True):
        np.testing.assert_allclose(mine, theirs)


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (7, 10), (9123, 10000), (1, 1)])
def test_wilson_ends_solve_the_score_equation(correct: int, n: int) -> None:
    z = 1.959963984540054
    for end in wilson(correct, n):
        # the ends are where the share is z standard errors away, the error being that of the end itself
        assert (correct / n - end) ** 2 == pytest.approx(z * z * end * (1 - end) / n, abs=1e-12)


def test_what_is_undefined_is_none(scored: tuple[np.ndarray, np.ndarray]) -> None:
    scores, y = scored
    got = evaluate(scores, y, 8, False)
    assert (got.log_loss, got.ece, got.log_loss_ci95, got.ece_ci95) == (None, None, None, None)
    assert got.balanced_accuracy_ci95 is not None
    assert got.to_json()["ece_ci95"] is None
    assert evaluate(scores[:, :5], y % 5, 5, True).top5 is None
    assert wilson(0, 0) == (0.0, 1.0)


def test_calibration_error_by_hand() -> None:
    # confidences 0.9 (three of four right: gap 0.15) and 0.6 (one of two right: gap 0.1)
    top = np.array([0.9, 0.9, 0.9, 0.9, 0.6, 0.6])
    y = np.array([0, 0, 0, 1, 0, 1])
    scores = np.log(np.stack([top, 1 - top], axis=1))
    assert calibration_error(scores, y) == pytest.approx((4 * 0.15 + 2 * 0.1) / 6)


def test_log_loss_of_a_certain_mistake_is_finite() -> None:
    scores = np.array([[0.0, ABSENT], [0.0, ABSENT]])
    got = evaluate(scores, np.array([0, 1]), 2, True)
    assert got.log_loss == pytest.approx(-math.log(np.finfo(float).eps) / 2)
    assert got.to_json()["accuracy_ci95"] == list(got.accuracy_ci95)


def test_blocks_of_any_size_give_the_same(
    scored: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, y = scored
    whole = evaluate(scores, y, 8, True)
    monkeypatch.setattr(calibration, "_BLOCK_VALUES", 8 * 7)  # seven rows
    assert evaluate(scores, y, 8, True) == whole
    tally = Tally(8, True)
    for rows in (slice(0, 1), slice(1, 1), slice(1, 333), slice(333, 500)):
        tally.add(scores[rows], y[rows])
    assert tally.metrics() == whole
    assert calibration_error(scores, y) == pytest.approx(whole.ece)


def test_scores_are_not_copied_whole() -> None:
    scores = np.random.default_rng(0).normal(size=(20_000, 1000)).astype(np.float32)
    y = np.arange(20_000) % 1000
    evaluate(scores[:10], y[:10], 1000, True)  # imports
    tracemalloc.start()
    evaluate(scores, y, 1000, True, intervals=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < scores.nbytes, "as float64 they would be twice that"


def test_equal_scores_are_taken_in_class_order() -> None:
    scores = np.zeros((10, 10))
    assert evaluate(scores, np.arange(10), 10, False, intervals=False).top5 == 0.5


def test_intervals_hold_their_metric_and_repeat(scored: tuple[np.ndarray, np.ndarray]) -> None:
    scores, y = scored
    got, again = evaluate(scores, y, 8, True), evaluate(scores, y, 8, True)
    assert got == again
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece"):
        low, high = getattr(got, f"{name}_ci95")
        assert low <= getattr(got, name) <= high, name
        assert high - low > 0.01, name
    plain = evaluate(scores, y, 8, True, intervals=False)
    assert plain.accuracy_ci95 == got.accuracy_ci95
    intervals = ("balanced_accuracy_ci95", "macro_f1_ci95", "log_loss_ci95", "ece_ci95")
    assert [getattr(plain, name) for name in intervals] == [None] * 4


def test_intervals_are_about_as_wide_as_resampling_rows_says(scored: tuple[np.ndarray, np.ndarray]) -> None:
    scores, y = scored
    pred = scores.argmax(axis=1)
    rng = np.random.default_rng(1)
    drawn = [(y[rows], pred[rows]) for rows in rng.integers(0, 500, (400, 500))]
    for interval, metric in zip(
        confusion_intervals(y, pred, 8),
        (
            lambda y, pred: referee.recall_score(y, pred, average="macro", labels=np.unique(y)),
            lambda y, pred: referee.f1_score(y, pred, average="macro"),
        ),
        strict=True,
    ):
        spread = np.std([metric(*each) for each in drawn])
        assert interval[1] - interval[0] == pytest.approx(3.92 * spread, rel=0.15)


def test_no_mistake_leaves_an_interval_with_a_width() -> None:
    y = np.arange(153) % 2
    for low, high in confusion_intervals(y, y, 2):
        assert high == 1
        assert low == pytest.approx(wilson(153, 153)[0], abs=0.02)
    assert confusion_intervals(np.zeros(20, int), np.zeros(20, int), 2)[0][0] < 0.95  # one class only


def test_interval_of_a_mean_is_students_where_values_are_normal() -> None:
    from scipy import stats

    values = np.random.default_rng(0).normal(5, 1, 400)
    expected = stats.t.interval(0.95, 399, loc=values.mean(), scale=stats.sem(values))
    np.testing.assert_allclose(mean_interval(values, most=36.0), expected, atol=0.02)
    assert mean_interval(np.full(5, 0.3), most=36.0) == (0.3, 0.3)
    low, high = mean_interval(np.array([0.1, 0.1, 0.1, 9.0]), most=36.0)
    assert 0 <= low < 2.325 < high <= 36


@pytest.mark.parametrize("n", [50, 1000])
def test_a_calibrated_head_may_have_no_calibration_error(n: int) -> None:
    rng = np.random.default_rng(2)
    reached = []
    for _ in range(40):
        confidence = rng.uniform(0.5, 1.0, n)
        reached.append(calibration_interval(confidence, rng.random(n) < confidence)[0] == 0)
    assert np.mean(reached) > 0.85
    low, high = calibration_interval(confidence, rng.random(n) < confidence - 0.3)
    assert 0 < low < 0.3 < high


def test_classes_missing_from_a_split_have_support_0(scored: tuple[np.ndarray, np.ndarray]) -> None:
    scores, y = scored
    each = per_class(y, scores.argmax(axis=1), 8)
    assert each.support[6:].tolist() == [0, 0]
    assert each.recall[6] == 0
