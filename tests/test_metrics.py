"""The metrics against scikit-learn and the formulas they are named after."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics as referee

from heads.metrics import calibration_error, confusion, evaluate, per_class, softmax, wilson
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
    assert (got.log_loss, got.ece) == (None, None)
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
