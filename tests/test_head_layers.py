"""A head as torch layers scores as the head itself does, whatever its kind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_predictors import features, make_heads

from heads.kernel_heads import SupportVectorHead
from heads.neighbors import NeighborHead
from heads.predictors import ABSENT, LinearHead, MLPHead
from heads.saved import KINDS
from heads.serving.head_layers import head_layers


def scores_of(head: Any, X: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return head_layers(head)(torch.from_numpy(X)).numpy()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_layers_score_as_their_head(kind: str) -> None:
    head = make_heads()[kind]
    np.testing.assert_allclose(scores_of(head, features(50)), head.scores(features(50)), rtol=1e-5, atol=1e-5)


def test_scalers_are_folded_into_weights() -> None:
    heads = make_heads()
    linear, mlp = head_layers(heads["linear"]), head_layers(heads["mlp"])
    assert isinstance(linear, torch.nn.Linear)
    assert [type(layer).__name__ for layer in mlp.children()] == ["Linear", "ReLU", "Linear"]
    assert not any(parameter.requires_grad for layers in (linear, mlp) for parameter in layers.parameters())


def test_a_class_without_rows_is_never_likely() -> None:
    heads = make_heads()
    linear, mlp = heads["linear"], heads["mlp"]
    assert isinstance(linear, LinearHead)
    assert isinstance(mlp, MLPHead)
    for head in (linear, mlp):
        weight, bias = head.weight.copy(), head.bias.copy()
        weight[1], bias[1] = 0, ABSENT
        probabilities = torch.from_numpy(scores_of(replace(head, weight=weight, bias=bias), features(9))).softmax(1)
        assert (probabilities[:, 1] == 0).all()
    vectors = heads["support_vectors"]
    assert isinstance(vectors, SupportVectorHead)
    spread = replace(vectors, present=np.array([0, 2, 4]), n_classes=5)
    found = scores_of(spread, features(9))
    np.testing.assert_allclose(found, spread.scores(features(9)), rtol=1e-5, atol=1e-5)
    assert (found[:, [1, 3]] == ABSENT).all()


def test_a_class_that_no_neighbour_has_gets_the_smallest_share() -> None:
    head = make_heads()["neighbors"]
    assert isinstance(head, NeighborHead)
    wider = replace(head, n_classes=6)
    found = scores_of(wider, features(9))
    np.testing.assert_allclose(found, wider.scores(features(9)), rtol=1e-5, atol=1e-5)
    assert np.exp(found[:, 3:]).max() < 1e-15


def test_features_of_zeros_have_no_direction() -> None:
    head = make_heads()["neighbors"]
    assert np.isfinite(scores_of(head, np.zeros((2, 7), np.float32))).all()
