"""The Fisher information of a softmax layer against its closed form, and of a small network against autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from tuning import CPU, TensorSource, pictures, plan_for, tiny, weights_of

from featcache.models.stages import StagedModel
from finetune import fisher
from finetune.fisher import drawn_label, fisher_information
from finetune.penalties import held_weights


class Softmax(nn.Module):
    """One linear layer as a backbone, and a head that is the identity: together a softmax layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(12, 4), nn.Linear(4, 4)
        nn.init.eye_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.body(torch.flatten(images, 1)))


@pytest.fixture
def softmax() -> StagedModel:
    torch.manual_seed(2)
    return StagedModel(Softmax().requires_grad_(False), torch.zeros(1, 3, 2, 2))


def estimate(staged: StagedModel, rows: TensorSource, names: list[str], **given: Any) -> fisher.Fisher:
    settings = {"seed": 0, "device": CPU, **given}
    return fisher_information(staged, staged.head, rows, names=names, **settings)


def test_a_softmax_layer_has_the_closed_form(softmax: StagedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """mean of p_k (1 - p_k) x_j^2, within four standard errors of what drawing labels leaves to chance."""
    monkeypatch.setattr(fisher, "FISHER_IMAGES", 3000)
    images = pictures(3000, side=2)
    found = estimate(softmax, images, ["body.weight", "body.bias"])
    x = images.inputs.flatten(1).double()
    with torch.no_grad():
        p = softmax.model.double()(x.reshape(-1, 3, 2, 2)).softmax(1)
    softmax.model.float()
    spread = p * (1 - p)
    fourth = p * (1 - p) ** 4 + (1 - p) * p**4  # of the gradient by the layer's output
    for name, inputs in (("body.weight", x), ("body.bias", torch.ones(3000, 1).double())):
        exact = (spread.T @ inputs**2 / 3000).reshape(found.diagonal[name].shape)
        variance = (fourth - spread**2).T @ inputs**4 / 3000**2
        error = variance.sqrt().reshape(exact.shape)
        off = (found.diagonal[name].double() - exact).abs()
        assert (off <= 4 * error + 1e-7).all(), (off / error).max()
    assert found.n_images == 3000


def test_given_the_labels_it_is_autograds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all thawed weights of a network with BatchNorm, convolutions included, image by image."""
    staged, rows = tiny(), pictures(7)
    names = list(held_weights(staged, plan_for(staged, unfreeze="last:3")))
    monkeypatch.setattr(fisher, "drawn_label", lambda log_p, draw: 2)
    found = estimate(staged, rows, names)
    model = staged.model.eval()
    expected = {name: torch.zeros_like(model.get_parameter(name)) for name in names}
    for image in rows.inputs:
        model.zero_grad()
        for name in names:
            model.get_parameter(name).requires_grad_()
        F.cross_entropy(model(image[None]), torch.tensor([2])).backward()
        for name in names:
            expected[name] += model.get_parameter(name).grad ** 2 / 7
    for name in names:
        torch.testing.assert_close(found.diagonal[name], expected[name], rtol=1e-4, atol=1e-9, msg=name)


def test_it_leaves_the_model_as_it_was_and_looks_at_no_labels() -> None:
    staged, rows = tiny(), pictures(9)
    names = list(held_weights(staged, plan_for(staged, unfreeze="all")))
    before, state = weights_of(staged), torch.get_rng_state()
    first = estimate(staged, rows, names)
    second = estimate(staged, TensorSource(rows.inputs, np.zeros(9, np.int64)), names)
    assert all(torch.equal(first.diagonal[name], second.diagonal[name]) for name in names)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(staged).items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in staged.model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    other = estimate(staged, rows, names, seed=1)
    assert not all(torch.equal(first.diagonal[name], other.diagonal[name]) for name in names)


def test_it_takes_so_many_images_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fisher, "FISHER_IMAGES", 4)
    found = estimate(tiny(), pictures(9), ["layer3.0.weight"])
    assert found.n_images == 4
    assert found.to_json()["images"] == 4
    assert "3 classes" in found.to_json()["head"]


def test_labels_are_drawn_as_probabilities_have_it() -> None:
    p = torch.tensor([[0.2, 0.0, 0.5, 0.3]])
    drawn = [drawn_label(p.log(), (i + 0.5) / 1000) for i in range(1000)]
    assert np.bincount(drawn, minlength=4).tolist() == [200, 0, 500, 300]
    assert drawn_label(p.log(), 0.0) == 0
    assert drawn_label(torch.tensor([[0.5, 0.5]]).log(), 1 - 2**-53) == 1
