"""Fidelity: angles and lengths as numpy has them, and nothing passes that is not finite."""

from __future__ import annotations

import json

import numpy as np
import pytest

from featcache.engines.fidelity import TOLERANCE, compare


def test_cosine_and_relative_error_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    expected = rng.normal(size=(6, 3, 2, 2)).astype(np.float32)
    found = expected + rng.normal(size=expected.shape).astype(np.float32) * 0.1
    told = compare(expected, found, precision="bf16")
    a, b = expected.reshape(6, -1).astype(float), found.reshape(6, -1).astype(float)
    cosine = [x @ y / np.sqrt((x @ x) * (y @ y)) for x, y in zip(a, b, strict=True)]
    assert told.cosine_min == pytest.approx(min(cosine), abs=1e-12)
    assert told.cosine_mean == pytest.approx(np.mean(cosine), abs=1e-12)
    assert told.relative_max == pytest.approx(max(np.sqrt(((b - a) ** 2).sum(1) / (a**2).sum(1))))
    assert told.images == 6
    assert json.loads(json.dumps(told.to_json()))["tolerance"] == TOLERANCE["bf16"]


@pytest.mark.parametrize("precision", TOLERANCE)
def test_the_same_features_pass_and_an_angle_beyond_tolerance_does_not(precision: str) -> None:
    features = np.random.default_rng(1).normal(size=(4, 512)).astype(np.float32)
    assert compare(features, features, precision=precision).is_faithful
    turned = features.copy()
    normal = np.roll(features[2], 1) - features[2] * (np.roll(features[2], 1) @ features[2]) / (
        features[2] @ features[2]
    )
    angle = np.arccos(TOLERANCE[precision])
    for factor, faithful in ((0.9, True), (1.1, False)):
        turned[2] = features[2] + normal * np.tan(factor * angle) * np.linalg.norm(features[2]) / np.linalg.norm(normal)
        assert compare(features, turned, precision=precision).is_faithful is faithful


@pytest.mark.parametrize("broken", [np.nan, np.inf, 0.0])
def test_features_that_are_not_finite_or_vanish_never_pass(broken: float) -> None:
    features = np.ones((3, 5), np.float32)
    found = features.copy()
    found[1] = broken
    told = compare(features, found, precision="int8")
    assert not told.is_faithful
    assert told.cosine_min == -1
    json.dumps(told.to_json(), allow_nan=False)


def test_a_row_of_zeros_in_both_is_the_same() -> None:
    zeros = np.zeros((2, 5), np.float32)
    told = compare(zeros, zeros, precision="fp32")
    assert (told.cosine_min, told.relative_max) == (1, 0)
