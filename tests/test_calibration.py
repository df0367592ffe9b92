"""Reliability by hand and against scikit-learn; temperatures that are known, bounded, or a grid's best."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special
from sklearn.calibration import calibration_curve

from featcache.common.errors import UserError
from heads.evidence import calibration
from heads.evidence.calibration import doubt, fit_temperature, reliability
from heads.evidence.metrics import log_loss
from heads.predictors import ABSENT


def labelled(n: int, n_classes: int, *, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn with the probabilities of softmax(logits / temperature)."""
    rng = np.random.default_rng(seed)
    scores = 3 * rng.normal(size=(n, n_classes))
    noise = rng.gumbel(size=scores.shape)
    return scores, (scores / temperature + noise).argmax(axis=1)


def test_scikit_learn_agrees() -> None:
    scores, y = labelled(500, 3, temperature=2.0)
    found = reliability(scores, y, n_bins=10)
    p = special.softmax(scores, axis=1)
    right, stated = calibration_curve(scores.argmax(axis=1) == y, p.max(axis=1), n_bins=10)
    filled = found.count > 0
    np.testing.assert_allclose(found.accuracy[filled], right)
    np.testing.assert_allclose(found.confidence[filled], stated)
    assert np.isnan(found.accuracy[~filled]).all()
    assert not filled[:3].any()  # three classes: the largest probability is at least 1/3
    assert found.count.sum() == 500


def test_bins_hold_their_upper_edge_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    top = np.array([0.5, 0.75, 0.76, 1.0])
    scores = np.log(np.stack([top, 1 - top], axis=1) + 1e-300)
    for block in (2**20, 4):
        monkeypatch.setattr(calibration, "_BLOCK_VALUES", block)
        found = reliability(scores, np.array([0, 1, 0, 0]), n_bins=4)
        assert found.count.tolist() == [0, 1, 1, 2]
        assert found.ece == pytest.approx((0.5 + 0.75 + abs(2 - 1.76)) / 4)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_that_labels_were_drawn_with_is_found(temperature: float) -> None:
    scores, y = labelled(20_000, 4, temperature=temperature)
    assert fit_temperature(scores, y) == pytest.approx(temperature, rel=0.05)


def test_no_temperature_of_a_grid_is_better() -> None:
    scores, y = labelled(200, 5, temperature=3.0)
    best = log_loss(scores / fit_temperature(scores, y, probabilistic=True), y)
    assert best < log_loss(scores, y)
    assert all(best <= log_loss(scores / t, y) + 1e-9 for t in np.geomspace(0.01, 100, 200))


@pytest.mark.parametrize("n", [4, 60, 10_000])
def test_rows_that_are_all_right_support_the_probability_of_laplaces_rule(n: int) -> None:
    y = np.arange(n) % 2
    scores = np.eye(2)[y] * 5.0
    p = special.softmax(scores / fit_temperature(scores, y), axis=1)
    np.testing.assert_allclose(p[np.arange(n), y], (n + 1) / (n + 2), rtol=1e-4)


def test_probabilities_are_made_surer_as_far_as_rows_support_it_and_not_less_sure_for_want_of_rows() -> None:
    y = np.arange(6) % 3
    hesitant, certain = np.eye(3)[y], np.eye(3)[y] * 50.0
    assert fit_temperature(hesitant, y, probabilistic=True) == fit_temperature(hesitant, y) < 1
    assert fit_temperature(certain, y, probabilistic=True) == 1 < fit_temperature(certain, y)
    once_wrong = np.r_[2, y[1:]]
    assert fit_temperature(certain, once_wrong, probabilistic=True) > 1


def test_all_wrong_is_no_surer_than_need_be() -> None:
    scores = np.eye(3)[[0, 1, 2, 0]] * 5.0
    assert 99 < fit_temperature(scores, np.array([1, 2, 0, 2])) / scores.std() <= 100


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("probabilistic", [True, False])
def test_many_rows_speak_for_themselves(temperature: float, probabilistic: bool) -> None:
    scores, y = labelled(5000, 4, temperature=temperature)
    found = fit_temperature(scores, y, probabilistic=probabilistic)
    grid = found * np.geomspace(0.98, 1.02, 21)
    best = grid[np.argmin([log_loss(scores / t, y) for t in grid])]
    assert found == pytest.approx(best, rel=1e-2)
    assert log_loss(scores / found, y) == pytest.approx(log_loss(scores / best, y), abs=1e-5)


def test_one_more_row_that_is_wrong_by_hand() -> None:
    scores = np.array([[5.0, 2.0, 1.0], [0.0, 4.0, 6.0], [3.0, ABSENT, ABSENT]])
    assert doubt(scores, np.array([0, 1, 0])) == pytest.approx((3.0 - 2.0 + 0.0) / 3 / 5)
    assert doubt(scores, np.array([2, 1, 0])) == 0  # wrong on the whole: it would make the head surer


@pytest.mark.parametrize("size", [1e-6, 1e6])
def test_the_size_of_the_scores_does_not_matter(size: float) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    scores = rng.standard_normal((300, 3)) + np.eye(3)[y]
    assert fit_temperature(scores * size, y) == pytest.approx(size * fit_temperature(scores, y), rel=1e-3)
    assert 0.01 <= fit_temperature(np.zeros((4, 3)), np.array([0, 1, 2, 0])) <= 100  # nothing to choose


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_classes_without_training_rows_stay_impossible(dtype: type) -> None:
    scores, y = labelled(2000, 3, temperature=2.0)
    wider = np.concatenate([scores, np.full((2000, 1), ABSENT)], axis=1).astype(dtype)
    found = fit_temperature(wider, y)
    assert found == pytest.approx(fit_temperature(scores, y), rel=1e-3)
    for t in (0.01, found, 100.0):
        assert (special.softmax(wider / dtype(t), axis=1)[:, 3] == 0).all()
    absent = np.where(np.arange(2000) < 500, 3, y)  # such a label: no temperature helps
    assert fit_temperature(wider, absent) == pytest.approx(fit_temperature(scores[500:], y[500:]), rel=1e-3)
    assert fit_temperature(wider, np.full(2000, 3)) == 1


def test_no_rows_are_refused() -> None:
    with pytest.raises(UserError, match=r"scores \(0, 3\) and labels \(0,\)"):
        fit_temperature(np.empty((0, 3)), np.empty(0, int))
    with pytest.raises(UserError, match=r"scores \(2, 3\) and labels \(1,\)"):
        fit_temperature(np.empty((2, 3)), np.empty(1, int))
