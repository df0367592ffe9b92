"""Every plan on real architectures with random weights: a few steps on a few digits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tuning import digits, plan_for, quick, torchvision_model

from featcache.models.stages import StagedModel
from finetune.comparison.starting import Start
from finetune.thawing import count_parameters

SIDES = {"resnet18": 32, "resnet50": 32, "alexnet": 63, "vgg16": 32}
PLANS: dict[str, dict[str, Any]] = {
    "head": {},
    "partial": {"unfreeze": "last:2"},
    "full": {"unfreeze": "all"},
    "early": {"freeze": "early"},
    "middle": {"freeze": "middle"},
    "progressive": {"progressive": True, "unfreeze": "last:2"},
    "discriminative": {"lr_decay": 3.0},
    "scratch": {"from_scratch": True},
}


@pytest.fixture(scope="module")
def models() -> dict[str, StagedModel]:
    return {}


@pytest.mark.parametrize(
    ("name", "plan_name"),
    [
        pytest.param(name, plan_name, marks=() if name == "resnet18" or quickly else pytest.mark.slow)
        for name in SIDES
        for plan_name in PLANS
        for quickly in [plan_name == "progressive" and name != "vgg16"]
    ],
)
def test_every_plan_trains_every_family(name: str, plan_name: str, models: dict[str, StagedModel]) -> None:
    """Every plan of ResNet-18, and of others progressive thawing, which goes through most plans; the rest is slow."""
    if name not in models:
        models.clear()  # one at a time: VGG-16 takes half a GB
        models[name] = torchvision_model(name, SIDES[name], n_classes=10)
    staged = models[name]
    flags = {"epochs": 3 if "progressive" in PLANS[plan_name] else 1, "lr": 1e-3, **PLANS[plan_name]}
    plan = plan_for(staged, **flags)
    side = SIDES[name]
    validation = digits(3, side=side, start=6) if name.startswith("resnet") else None  # no copies of large weights
    done = quick(staged, plan, rows=digits(6, side=side), validation=validation, batch_size=3, optimizer="sgd")
    assert all(np.isfinite(entry["train_loss"]) for entry in done.history)
    assert all(torch.isfinite(p).all() for p in staged.head.parameters())


def test_a_trial_begins_with_the_weights_that_it_should() -> None:
    """Also of a model whose own loader refuses tensors without the version of their layout."""
    staged = torchvision_model("mnasnet0_5", 32, n_classes=10)
    state = {name: tensor.clone() for name, tensor in staged.model.state_dict().items()}
    given: dict[str, Any] = {"rows": None, "backbone": SimpleNamespace(staged=staged), "settings": None}
    start = Start(**given, state=state, device=torch.device("cpu"))
    for tensor in staged.model.state_dict().values():
        tensor.zero_()
    start.restore()
    assert all(torch.equal(tensor, state[name]) for name, tensor in staged.model.state_dict().items())


def test_parameter_counts_are_those_of_the_books() -> None:
    staged = torchvision_model("resnet18", 32, n_classes=10)
    assert count_parameters(staged, ()) == (5_130, 11_181_642)
    assert count_parameters(staged, ("layer4",)) == (8_398_858, 11_181_642)
    assert count_parameters(staged, tuple(s.name for s in staged.stages)) == (11_181_642, 11_181_642)
