"""The final layer: drawn anew by a seed, or a fitted linear head with its scaler folded in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tuning import tiny

from featcache.common.errors import UserError
from finetune.new_head import folded, replace_head, set_head
from heads.head_run import fit_head
from heads.predictors import ABSENT, LinearHead


def head(n_classes: int = 4, n_features: int = 12, seed: int = 0) -> LinearHead:
    rng = np.random.default_rng(seed)
    return LinearHead(
        mean=rng.normal(5, 3, n_features).astype(np.float32),
        scale=rng.uniform(0.01, 30, n_features).astype(np.float32),
        weight=rng.normal(0, 1, (n_classes, n_features)).astype(np.float32),
        bias=rng.normal(0, 1, n_classes).astype(np.float32),
        probabilistic=True,
    )


def test_a_folded_head_scores_as_the_head_does() -> None:
    fitted = head()
    features = np.random.default_rng(1).normal(5, 4, (500, 12)).astype(np.float32)
    staged = tiny()
    replace_head(staged, 4, seed=0)
    set_head(staged, folded(fitted))
    with torch.no_grad():
        logits = staged.head(torch.from_numpy(features)).numpy()
    scores = fitted.scores(features)
    np.testing.assert_array_equal(logits.argmax(1), fitted.predict(features))
    np.testing.assert_allclose(logits, scores, atol=2e-5 * np.abs(scores).max())


def test_folding_is_done_in_float64() -> None:
    fitted = head()
    layer = folded(fitted)
    weight = fitted.weight.astype(np.float64) / fitted.scale
    np.testing.assert_array_equal(layer.weight, weight.astype(np.float32))
    np.testing.assert_array_equal(
        layer.bias, (fitted.bias - weight @ fitted.mean.astype(np.float64)).astype(np.float32)
    )


def test_heads_that_are_no_linear_layer_are_refused(cache: object) -> None:
    from heads.rows import load_rows

    mlp = fit_head(load_rows(cache), "centroid").head
    assert isinstance(folded(mlp).weight, np.ndarray)
    knn = fit_head(load_rows(cache), "knn").head
    with pytest.raises(UserError, match="of kind neighbors is no linear layer"):
        folded(knn)
    absent = head()
    absent.bias[1] = ABSENT
    with pytest.raises(UserError, match="without rows of some class"):
        folded(absent)


def test_a_new_head_follows_its_seed() -> None:
    weights = []
    for seed in (1, 1, 2):
        staged = tiny()
        replace_head(staged, 5, seed=seed)
        assert staged.head.weight.shape == (5, 12)
        assert staged.model.get_submodule(staged.head_name) is staged.head
        weights.append(staged.head.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
