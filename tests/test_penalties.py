"""Terms that hold weights to their start: against gradients by hand, in the loop, and after an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from making import Stop
from torch import Tensor
from trained import ALL_RANDOM, HalfUsedModel, assert_same, stop_at, timeless
from tuning import pictures, plan_for, quick, tiny, weights_of

from featcache.models.stages import StagedModel
from finetune.optimizers import make_optimizer
from finetune.penalties import PullToStart, held_weights
from finetune.plans import Plan
from finetune.settings import Settings
from finetune.thawing import FrozenError, thaw

pytestmark = pytest.mark.usefixtures("a_checkpoint_each_epoch")


def pull(staged: StagedModel, plan: Plan, strength: float, importance: dict[str, Tensor] | None = None) -> PullToStart:
    return PullToStart(held_weights(staged, plan), strength=strength, importance=importance)


def some_importance(staged: StagedModel, plan: Plan) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    start = held_weights(staged, plan)
    return {name: torch.rand(tensor.shape, generator=generator) for name, tensor in start.items()}


def distance(staged: StagedModel, start: dict[str, Tensor]) -> float:
    """The norm of what the backbone's weights moved by."""
    now = {name: tensor for name, tensor in weights_of(staged).items() if not name.startswith("fc")}
    return float(torch.stack([(now[name].float() - start[name].float()).square().sum() for name in now]).sum().sqrt())


@pytest.mark.parametrize("weighted", [False, True])
def test_value_and_gradient_by_hand(weighted: bool) -> None:
    """strength * importance * (weight - start), for the thawed backbone and nothing else."""
    staged = tiny()
    plan = plan_for(staged, unfreeze="last:2")
    importance = some_importance(staged, plan) if weighted else None
    term = pull(staged, plan, 0.3, importance)
    start = weights_of(staged)
    thawed = thaw(staged, plan, plan.phases[0])
    with torch.no_grad():
        for parameter in staged.model.parameters():
            parameter.add_(torch.randn(parameter.shape))
    value = term(thawed, epoch=0, step=0, n_steps=1)
    value.backward()
    expected = 0.0
    for name, parameter in staged.model.named_parameters():
        if not name.startswith(("layer2", "layer3")):
            assert parameter.grad is None, name
            continue
        weight = importance[name] if importance else torch.ones_like(parameter)
        off = (parameter - start[name]).detach()
        torch.testing.assert_close(parameter.grad, 0.3 * weight * off)
        expected += float((weight.double() * off.double() ** 2).sum()) * 0.3 / 2
    assert float(value.detach()) == pytest.approx(expected, rel=1e-5)


def test_nothing_is_held_while_the_head_alone_trains() -> None:
    staged = tiny()
    plan = plan_for(staged, progressive=True, phase_epochs=[1], epochs=None)
    term = pull(staged, plan, 5.0)
    assert not term(thaw(staged, plan, plan.phases[0]), epoch=0, step=0, n_steps=1).requires_grad
    done = quick(staged, plan, terms=[term])
    penalties = [entry["penalty"] for entry in done.history]
    assert penalties[0] == 0
    assert all(penalty > 0 for penalty in penalties[1:])
    assert "penalty" not in quick(tiny(), plan).history[0]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_loop_adds_it_once_a_step(accumulate: int) -> None:
    """SGD by hand: the gradient of the mean loss of a step's images, and of the penalty."""
    ours, theirs = tiny(dropout=0.0), tiny(dropout=0.0)
    plan = plan_for(ours, unfreeze="last:2", lr=0.05)
    given: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"}
    term = pull(ours, plan, 2.0)
    quick(ours, plan, n=24, terms=[term], warmup=0.0, validation=None, accumulate=accumulate, batch_size=6, **given)
    rows, start, model = pictures(24), weights_of(theirs), theirs.model.eval()
    names = [*held_weights(theirs, plan), "fc.weight", "fc.bias"]
    for epoch in range(plan.epochs):
        batches = np.array_split(np.random.default_rng((0, epoch)).permutation(24), 4)
        for i in range(0, 4, accumulate):
            numbers = np.concatenate(batches[i : i + accumulate])
            parameters = [model.get_parameter(name).requires_grad_() for name in names]
            loss = F.cross_entropy(model(rows.inputs[numbers]), torch.from_numpy(rows.labels[numbers]))
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for name, parameter, gradient in zip(names, parameters, gradients, strict=True):
                    held = 0.0 if name.startswith("fc") else 2.0 * (parameter - start[name])
                    parameter -= 0.05 * (gradient + held)
    for name, tensor in weights_of(ours).items():
        torch.testing.assert_close(tensor, theirs.model.state_dict()[name], rtol=1e-4, atol=1e-6, msg=name)


def test_a_huge_penalty_keeps_the_weights_at_the_start() -> None:
    moved = []
    for strength in (None, 1.0, 10.0, 99.0):
        staged = tiny(dropout=0.0)
        start = weights_of(staged)
        plan = plan_for(staged, unfreeze="all", epochs=12)
        terms = [] if strength is None else [pull(staged, plan, strength)]
        quick(staged, plan, terms=terms, optimizer="sgd", momentum=0.0, weight_decay=0.0, validation=None)
        moved.append(distance(staged, start))
        assert not torch.equal(weights_of(staged)["fc.weight"], start["fc.weight"])
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < moved[0] / 10


def test_what_is_held_has_no_weight_decay() -> None:
    staged = tiny()
    plan = plan_for(staged, unfreeze="last:2")
    for given, expected in (({}, {0.0, 0.01}), ({"l2_sp": 0.1}, {0.0}), ({"ewc": 1.0}, {0.0})):
        groups = make_optimizer(staged, plan, Settings(**given)).param_groups
        assert {group["weight_decay"] for group in groups if group["name"] != plan.head} == expected
        assert {group["weight_decay"] for group in groups if group["name"] == plan.head} == {0.0, 0.01}


def test_a_penalty_does_not_hide_what_never_had_a_gradient() -> None:
    staged = StagedModel(HalfUsedModel().requires_grad_(False), torch.zeros(1, 3, 16, 16))
    plan = plan_for(staged, unfreeze="all")
    with pytest.raises(FrozenError, match="never had a gradient"):
        quick(staged, plan, terms=[pull(staged, plan, 1.0)])


@pytest.mark.parametrize("weighted", [False, True])
def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path, weighted: bool) -> None:
    """The start is that of the run, not that of the checkpoint."""
    flags = {"progressive": True, "unfreeze": "last:2", "phase_epochs": [1, 2, 2], "epochs": None}
    whole = tiny()
    plan = plan_for(whole, **flags)

    def terms(staged: StagedModel) -> list[PullToStart]:
        return [pull(staged, plan, 3.0, some_importance(staged, plan) if weighted else None)]

    expected = quick(whole, plan, terms=terms(whole), **ALL_RANDOM)
    for epoch in range(1, plan.epochs):
        first, second = tiny(), tiny()
        where = {"checkpoint": tmp_path / f"{epoch}.pt"}
        with pytest.raises(Stop):
            quick(first, plan, terms=terms(first), on_epoch=stop_at(epoch), **where, **ALL_RANDOM)
        done = quick(second, plan, terms=terms(second), resume=True, **where, **ALL_RANDOM)
        assert_same(weights_of(second), weights_of(whole))
        assert timeless(done.history) == timeless(expected.history)


def test_half_precision_scales_it_as_the_loss() -> None:
    """fp16 with its loss scaled: close to bf16's and fp32's way, and the penalty told is not scaled."""
    told = []
    for precision in ("fp32", "fp16"):
        staged = tiny(dropout=0.0)
        plan = plan_for(staged, unfreeze="all", epochs=3)
        done = quick(staged, plan, terms=[pull(staged, plan, 1.0)], precision=precision, optimizer="sgd")
        told.append([entry["penalty"] for entry in done.history])
    np.testing.assert_allclose(told[1], told[0], rtol=0.1)
