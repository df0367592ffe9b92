"""What counts as drift: a distance beyond the tolerance, other pictures, or numbers that can't be compared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from featcache.cache.canary import TOLERANCE, Canary, compare

RNG = np.random.default_rng(0)
THEN = Canary(("a.png", "b.png"), RNG.standard_normal((2, 3, 8)).astype(np.float32), np.zeros((2, 16), np.uint8))


def moved(relative: float, picture: int = 1) -> Canary:
    """One picture's features moved by so much of their norm."""
    features = THEN.features.astype(np.float64)
    step = RNG.standard_normal(features[picture].shape)
    features[picture] += step * relative * np.linalg.norm(features[picture]) / np.linalg.norm(step)
    return replace(THEN, features=features.astype(np.float32))


def test_the_same_is_no_drift() -> None:
    drift = compare(THEN, THEN, precision="fp32")
    assert drift.relative == 0
    assert not drift.is_drift
    assert "agree" in str(drift)


@pytest.mark.parametrize("precision", TOLERANCE)
def test_the_distance_is_measured_and_its_picture_named(precision: str) -> None:
    for share in (0.5, 0.9, 1.1, 10):
        drift = compare(THEN, moved(share * TOLERANCE[precision]), precision=precision)
        assert drift.relative == pytest.approx(share * TOLERANCE[precision], rel=1e-3)
        assert drift.is_drift == (share > 1)
        assert drift.picture == "b.png"


def test_other_pixels_with_the_same_features_are_told_and_are_no_drift() -> None:
    pixels = THEN.pixels.copy()
    pixels[0, 3] = 1
    drift = compare(THEN, replace(THEN, pixels=pixels), precision="fp32")
    assert drift.pixels == ("a.png",)
    assert not drift.is_drift
    assert "resized pictures differ (a.png)" in str(drift)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_drift_unless_they_always_were(value: float) -> None:
    broken = replace(THEN, features=np.where(np.arange(8) == 3, np.float32(value), THEN.features))
    assert compare(THEN, broken, precision="bf16").is_drift
    assert compare(broken, THEN, precision="bf16").is_drift
    assert not compare(broken, broken, precision="bf16").is_drift


def test_zeros_have_no_norm_to_compare_with() -> None:
    zeros = replace(THEN, features=np.zeros_like(THEN.features))
    assert not compare(zeros, zeros, precision="fp32").is_drift
    assert compare(zeros, THEN, precision="fp32").is_drift


def test_other_pictures_or_shapes_are_drift() -> None:
    assert compare(THEN, replace(THEN, ids=("a.png", "c.png")), precision="fp32").is_drift
    assert compare(THEN, replace(THEN, features=THEN.features[:, :2]), precision="fp32").is_drift
