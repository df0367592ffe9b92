"""What a training did to each stage, and what gradients say before it: exact zeros, and no trace of a probe."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from test_rate_finder import Breaking, assert_untouched, everything
from tuning import CPU, pictures, plan_for, quick, tiny, torchvision_model, weights_of

from featcache.common.errors import UserError
from featcache.models.stages import StagedModel
from finetune.changes import GradientNorms, StageChange, stage_changes
from finetune.gradient_probe import Probe, gradient_probe
from finetune.settings import Settings
from finetune.thawing import group_of


def changes_of(staged: StagedModel, flags: dict[str, Any], **given: Any) -> dict[str, StageChange]:
    before = weights_of(staged)
    trained = quick(staged, plan_for(staged, **flags), **given)
    return {change.stage: change for change in stage_changes(staged, before, trained.history)}


@pytest.mark.parametrize(
    ("flags", "frozen"),
    [
        ({}, "stem layer1 layer2 layer3"),
        ({"unfreeze": "last:1"}, "stem layer1 layer2"),
        ({"freeze": "layer1,layer2", "batch_norm": "train"}, "layer1 layer2"),
        ({"progressive": True, "unfreeze": "last:2", "epochs": 3}, "stem layer1"),
        ({"unfreeze": "all"}, ""),
    ],
    ids=str,
)
def test_frozen_stages_show_exactly_no_change(flags: dict[str, Any], frozen: str) -> None:
    staged = tiny()
    found = changes_of(staged, flags, optimizer="adamw", weight_decay=0.1)
    assert list(found) == ["stem", "layer1", "layer2", "layer3", "fc"]
    for name, change in found.items():
        if name in frozen.split():
            assert (change.weight_change, change.gradient_norm) == (0.0, None)
        else:
            assert change.weight_change is not None
            assert 0 < change.weight_change < 1
            assert change.gradient_norm is not None
            assert change.gradient_norm > 0
    sizes = {stage.name: stage.n_parameters for stage in staged.stages}
    assert {name: change.n_parameters for name, change in found.items()} == {**sizes, "fc": 12 * 3 + 3}


def test_weight_change_is_the_relative_norm_of_all_parameters_together() -> None:
    staged = tiny()
    before = weights_of(staged)
    with torch.no_grad():
        staged.model.layer2[0].weight *= 1.5
        staged.model.layer2[1].running_mean += 5.0  # no parameter
    layer = [before[name].double().flatten() for name in before if name in group_of(staged) and "layer2" in name]
    expected = 0.5 * before["layer2.0.weight"].double().norm() / torch.cat(layer).norm()
    found = {change.stage: change.weight_change for change in stage_changes(staged, before, [])}
    assert found == {"stem": 0.0, "layer1": 0.0, "layer2": pytest.approx(float(expected)), "layer3": 0.0, "fc": 0.0}


def test_weights_that_were_nothing_have_no_relative_change() -> None:
    staged = tiny()
    with torch.no_grad():
        for parameter in staged.head.parameters():
            parameter.zero_()
    assert stage_changes(staged, weights_of(staged), [])[-1].weight_change is None


def test_gradient_norms_are_those_of_the_last_epoch() -> None:
    """SGD without momentum, one step an epoch: the gradient is the step over the rate."""
    staged = tiny(dropout=0.0)
    plan, states = plan_for(staged, unfreeze="all", lr=0.01, epochs=2), [weights_of(staged)]
    trained = quick(
        staged,
        plan,
        n=8,
        validation=None,
        optimizer="sgd",
        momentum=0.0,
        weight_decay=0.0,
        schedule="constant",
        warmup=0.0,
        on_epoch=lambda entry: states.append(weights_of(staged)),
    )
    for group in ("stem", "fc"):
        names = [name for name, its in group_of(staged).items() if its == group]
        weights, after = (torch.cat([state[name].flatten() for name in names]) for state in states[1:])
        expected = float((after - weights).norm() / 0.01 / weights.norm())
        assert trained.history[-1]["gradients"][group] == pytest.approx(expected, rel=1e-3)


def test_gradients_that_are_not_finite_are_left_out_of_the_mean() -> None:
    weight = torch.nn.Parameter(torch.full((4,), 2.0))
    norms = GradientNorms({"w": weight}, {"w": "stage"})
    for value in (1.0, float("inf"), float("nan"), 3.0):
        weight.grad = torch.full((4,), value)
        norms.add()
    assert norms.means() == {"stage": pytest.approx(1.0)}
    assert GradientNorms({"w": weight}, {"w": "stage"}).means() == {"stage": None}


def probed(staged: StagedModel, **given: Any) -> Probe:
    return gradient_probe(
        staged, pictures(24), settings=Settings(**{"batch_size": 8, **given}), device=CPU, n_batches=2
    )


@pytest.mark.parametrize("given", [{}, {"augment": "flip", "precision": "bf16", "checkpointing": True}], ids=str)
def test_a_probe_leaves_no_trace_and_says_the_same_twice(given: dict[str, Any]) -> None:
    staged = tiny()
    staged.model.fc.weight.grad = torch.ones_like(staged.model.fc.weight)
    staged.model.layer1.train()
    staged.model.conv1.requires_grad_(True)
    before = everything(staged)
    first = probed(staged, **given)
    assert_untouched(staged, before)
    torch.rand(3)
    assert probed(staged, **given) == first
    assert first.n_rows == 16


def test_a_probe_that_breaks_off_leaves_no_trace() -> None:
    staged, rows = tiny(), pictures(24)
    before = everything(staged)
    with pytest.raises(KeyboardInterrupt):
        gradient_probe(staged, Breaking(rows.inputs, rows.labels), settings=Settings(batch_size=2), device=CPU)
    assert_untouched(staged, before)


def test_a_probe_is_the_mean_of_relative_norms_over_batches() -> None:
    staged, rows = tiny(), pictures(24)
    order = np.random.default_rng((0, 0)).permutation(24)
    ratios: dict[str, list[float]] = {}
    model, groups = staged.model.eval().requires_grad_(True), group_of(staged)
    for numbers in np.array_split(order, 3)[:2]:
        loss = F.cross_entropy(model(rows.inputs[numbers]), torch.from_numpy(rows.labels[numbers]))
        gradients = dict(zip(groups, torch.autograd.grad(loss, [model.get_parameter(n) for n in groups]), strict=True))
        for group in dict.fromkeys(groups.values()):
            names = [name for name in groups if groups[name] == group]
            pull, size = (
                torch.cat([t.detach().flatten() for t in ts]).norm()
                for ts in ([gradients[n] for n in names], [model.get_parameter(n) for n in names])
            )
            ratios.setdefault(group, []).append(float(pull / size))
    found = probed(staged)
    assert {**found.gradient_norms, "fc": found.head} == pytest.approx(
        {group: sum(values) / 2 for group, values in ratios.items()}, rel=1e-4
    )
    largest = max(found.gradient_norms.values())
    assert found.suggested == tuple(name for name, norm in found.gradient_norms.items() if norm >= largest / 2)


def test_a_stage_that_is_out_of_tune_is_suggested() -> None:
    """One stage's weights are shrunk, as new data could ask for: there the relative gradient is the largest."""
    staged = tiny()
    with torch.no_grad():
        for parameter in staged.model.layer1.parameters():
            parameter *= 0.05
    found = probed(staged)
    assert max(found.gradient_norms, key=found.gradient_norms.__getitem__) == "layer1"
    assert "layer1" in found.suggested
    assert "layer1" in found.flag


def test_a_probe_of_weights_that_are_not_finite_is_refused() -> None:
    staged = tiny()
    with torch.no_grad():
        staged.model.layer2[0].weight.fill_(float("nan"))
    with pytest.raises(UserError, match="gradient of .* is not finite"):
        probed(staged)


def test_all_stages_are_asked_for_by_one_word() -> None:
    probe = Probe(gradient_norms={"stem": 1.0, "layer1": 0.9}, head=2.0, n_rows=8, suggested=("stem", "layer1"))
    assert probe.flag == "--unfreeze all"


def test_a_probe_of_a_real_family() -> None:
    staged = torchvision_model("resnet18", 32)
    before = weights_of(staged)
    probe = gradient_probe(staged, pictures(4, side=32), settings=Settings(batch_size=2), device=CPU)
    assert list(probe.gradient_norms) == [stage.name for stage in staged.stages]
    after = weights_of(staged)
    assert all(torch.equal(before[name], after[name]) for name in before)
