"""Differences over seeds: McNemar's with one, and with several neither blind to images nor to seeds."""

from __future__ import annotations

import numpy as np
import pytest

from heads.evidence.paired import mcnemar, paired_difference
from heads.evidence.paired_seeds import _sign_flip, seeds_difference


def drawn(n_seeds: int, n_rows: int, seed: int = 0, share: float = 0.8) -> np.ndarray:
    return np.random.default_rng([n_seeds, seed]).random((n_seeds, n_rows)) < share


def test_one_seed_is_mcnemar() -> None:
    a, b = drawn(1, 120), drawn(1, 120, 1, 0.7)
    found, expected = seeds_difference(a, b), paired_difference(a[0], b[0])
    assert (found.difference, found.ci95) == (expected.difference, expected.ci95)
    assert found.p_value == found.mcnemar_p == mcnemar(a[0], b[0])


@pytest.mark.parametrize("seed", range(5))
def test_the_sign_flip_of_one_seed_is_mcnemar_exactly(seed: int) -> None:
    a, b = drawn(1, 90, seed)[0], drawn(1, 90, seed + 10, 0.7)[0]
    assert _sign_flip(a.astype(np.int64) - b) == pytest.approx(mcnemar(a, b), abs=1e-12)


def test_the_sign_flip_is_exact() -> None:
    """Against every one of the 2^9 assignments of signs."""
    sums = np.array([3, -1, 2, 2, 0, 1, 3, -2, 1, 1])
    signs = np.array(np.meshgrid(*[[-1, 1]] * len(sums))).reshape(len(sums), -1)
    exact = (np.abs(sums @ signs) >= abs(sums.sum())).mean()
    assert _sign_flip(sums) == pytest.approx(exact)
    assert _sign_flip(np.zeros(4, np.int64)) == 1.0


def test_swapping_turns_the_sign_and_the_order_of_seeds_does_not_matter() -> None:
    a, b = drawn(3, 200), drawn(3, 200, 1, 0.7)
    there, back = seeds_difference(a, b), seeds_difference(b, a)
    assert back.difference == -there.difference
    assert back.ci95 == pytest.approx((-there.ci95[1], -there.ci95[0]))
    assert back.p_value == pytest.approx(there.p_value)
    turned = seeds_difference(a[::-1], b[::-1])
    assert turned.p_value == pytest.approx(there.p_value)
    assert turned.ci95 == pytest.approx(there.ci95)


def test_the_same_predictions_thrice_are_no_more_evidence_than_once() -> None:
    a, b = drawn(1, 200), drawn(1, 200, 1, 0.74)
    once, thrice = seeds_difference(a, b), seeds_difference(a.repeat(3, axis=0), b.repeat(3, axis=0))
    assert thrice.p_value >= 0.9 * once.p_value
    assert thrice.ci95 == pytest.approx(once.ci95, abs=0.002)


def test_seeds_that_disagree_are_seen() -> None:
    """One seed wins by far, two lose by little: over images alone the mean would count as certain."""
    b = np.zeros((3, 1000), bool)
    b[:, :700] = True
    a = b.copy()
    a[0, 700:850] = True
    a[1:, 690:700] = False
    found = seeds_difference(a, b)
    unlike = a.astype(np.int64) - b
    assert _sign_flip(unlike.sum(axis=0)) < 1e-6
    assert found.p_value > 0.3
    assert found.ci95[0] < 0 < found.ci95[1]


def test_no_difference_at_all() -> None:
    a = drawn(3, 100)
    found = seeds_difference(a, a)
    assert (found.difference, found.p_value) == (0.0, 1.0)
    assert found.ci95[0] < 0 < found.ci95[1]
