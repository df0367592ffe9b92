"""The range test: it leaves no trace, stops in time, keeps the ratios of rates, and says the same twice."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from tuning import CPU, TensorSource, pictures, plan_for, quick, tiny, torchvision_model, weights_of

from featcache.common.errors import UserError
from featcache.models.stages import StagedModel
from finetune import rate_finder
from finetune.plans import Plan
from finetune.plots import draw_rates
from finetune.rate_finder import RANGES, STEPS, FoundRates, find_rates
from finetune.settings import Settings
from finetune.share import WHOLE, Share
from finetune.sources import Labels


def found(staged: StagedModel, plan: Plan, rows: TensorSource | None = None, **given: Any) -> FoundRates:
    settings = Settings(**{"batch_size": 8, **given})
    return find_rates(staged, plan, rows or pictures(24), settings=settings, device=CPU)


def everything(staged: StagedModel) -> dict[str, Tensor]:
    """All that a training could leave behind, the caller's random numbers too."""
    model = staged.model
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state |= {f"{name} requires": torch.tensor(p.requires_grad) for name, p in model.named_parameters()}
    state |= {f"{name} mode": torch.tensor(module.training) for name, module in model.named_modules()}
    grads = {f"{name} grad": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    numpy_state = torch.from_numpy(np.random.get_state()[1].astype(np.int64))
    python_state = torch.tensor([hash(random.getstate())])
    return {**state, **grads, "torch": torch.get_rng_state(), "numpy": numpy_state, "python": python_state}


def assert_untouched(staged: StagedModel, before: dict[str, Tensor]) -> None:
    after = everything(staged)
    assert after.keys() == before.keys()
    assert [name for name in before if not torch.equal(after[name], before[name])] == []


class Breaking(TensorSource):
    """Gives some batches, and then fails or gives what is not finite."""

    def batches(self, rows: Sequence[Labels], *, augment: bool, share: Share = WHOLE) -> Iterator[Tensor]:
        for k, inputs in enumerate(super().batches(rows, augment=augment, share=share)):
            if k == 7:
                raise KeyboardInterrupt
            yield inputs


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"optimizer": "sgd", "augment": "flip", "mix": "cutmix", "accumulate": 2, "batch_size": 5},
        {"optimizer": "adam", "clip": 1.0, "label_smoothing": 0.1, "checkpointing": True, "precision": "bf16"},
    ],
    ids=str,
)
def test_it_leaves_no_trace_and_says_the_same_twice(given: dict[str, Any]) -> None:
    staged = tiny()
    plan = plan_for(staged, from_scratch=True)  # BatchNorm's statistics move
    quick(staged, plan, n=16)  # statistics that are not the first
    staged.model.fc.weight.grad = torch.ones_like(staged.model.fc.weight)
    staged.model.layer1.train()
    staged.model.conv1.requires_grad_(True)
    before = everything(staged)
    first = found(staged, plan, **given)
    assert_untouched(staged, before)
    torch.rand(3)
    assert found(staged, plan, **given) == first
    assert 0 < first.minimum_tenth < first.rates[-1]
    assert first.rates[0] <= first.steepest <= 10.001 * first.minimum_tenth


@pytest.mark.parametrize("flags", [{}, {"unfreeze": "last:2", "lr_decay": 3.0}, {"progressive": True, "epochs": 5}])
def test_a_training_after_it_is_one_without_it(flags: dict[str, Any]) -> None:
    """No momentum, no seed and no statistic of the range test reaches the training."""
    results = []
    for search in (False, True):
        staged = tiny()
        plan = plan_for(staged, **flags)
        if search:
            with suppress(UserError):  # the head alone learns nothing on random features
                found(staged, plan)
        quick(staged, plan)
        results.append(weights_of(staged))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_it_leaves_no_trace_when_it_breaks_off() -> None:
    staged = tiny()
    plan, before, rows = plan_for(staged, from_scratch=True), everything(staged), pictures(24)
    with pytest.raises(KeyboardInterrupt):
        found(staged, plan, Breaking(rows.inputs, rows.labels))
    assert_untouched(staged, before)


def not_finite_from(staged: StagedModel, step: int) -> Callable[[], None]:
    """Make the head give NaN from a step on; returns what undoes it."""
    seen = iter(range(10**6))

    def spoil(_module: object, _inputs: object, logits: Tensor) -> Tensor:
        return logits * (float("nan") if next(seen) >= step else 1.0)

    return staged.head.register_forward_hook(spoil).remove


@pytest.mark.parametrize("spoil", ["gradient", "logits"])
def test_it_stops_at_the_first_loss_that_is_not_finite(spoil: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN is larger than nothing: a test for a large loss alone runs through it, with weights that are NaN too."""
    staged = tiny()
    plan, before = plan_for(staged, from_scratch=True, lr=0.01), everything(staged)
    whole = found(staged, plan, optimizer="sgd")

    def undo() -> None: ...

    if spoil == "logits":
        undo = not_finite_from(staged, 60)
    else:  # one step's gradient, and so the weights, become NaN
        monkeypatch.setattr(torch.optim.SGD, "step", spoiling_step(torch.optim.SGD.step, at=59))
    spoilt = found(staged, plan, optimizer="sgd")
    undo()
    assert spoilt.ended == "not finite"
    assert spoilt.losses == whole.losses[:60]
    assert_untouched(staged, before)


def spoiling_step(step: Callable[..., Any], *, at: int) -> Callable[..., Any]:
    seen = iter(range(10**6))

    def spoilt(optimizer: torch.optim.Optimizer, closure: None = None) -> Any:
        if next(seen) == at:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad *= float("nan")
        return step(optimizer, closure)

    return spoilt


def test_a_loss_that_runs_away_stops_it_early() -> None:
    staged = tiny()
    plan, before = plan_for(staged, from_scratch=True), everything(staged)
    settings = Settings(batch_size=8, optimizer="sgd")
    result = find_rates(staged, plan, pictures(24), settings=settings, device=CPU, lowest=1e-4, highest=1e6)
    assert result.ended == "diverged"
    assert len(result.rates) < STEPS * 0.7
    assert max(result.suggested, result.steepest, result.minimum_tenth) < result.rates[-1] / 3
    assert result.losses[-1] > 4 * min(result.losses)
    assert_untouched(staged, before)


def test_one_multiplier_goes_over_all_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    staged = tiny()
    plan = plan_for(staged, unfreeze="last:2", lr_per_stage={"layer2": 1e-4, "layer3": 4e-3, "head": 2e-2})
    ratios, heads = set(), []
    original = rate_finder.set_rates

    def seen(optimizer: torch.optim.Optimizer, factor: float) -> None:
        original(optimizer, factor)
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        ratios.add((round(rates["layer2"] / rates["fc"], 9), round(rates["layer3"] / rates["fc"], 9)))
        heads.append(rates["fc"])

    monkeypatch.setattr(rate_finder, "set_rates", seen)
    with suppress(UserError):
        found(staged, plan)
    assert ratios == {(0.005, 0.2)}
    np.testing.assert_allclose(heads, np.geomspace(*RANGES["adamw"], STEPS)[: len(heads)])


@pytest.mark.parametrize("curve", ["bowl", "cliff"])
def test_a_known_curve_is_read_right(curve: str) -> None:
    """A smooth fall from rate 1e-4 to 1e-2 that is the steepest at 1e-3, and then a rise, or a cliff."""
    rates = np.geomspace(1e-6, 1.0, 79)  # 13 for each power of ten
    exponents = np.log10(rates)
    losses = 2.0 - 1.5 / (1 + np.exp(-6 * (exponents + 3)))
    rise = np.maximum(exponents + 2, 0.0)
    losses = losses + (rise**2 if curve == "bowl" else 1e6 * (rise > 0.3))
    n_seen = len(rates)
    if curve == "cliff":
        n_seen = int(np.argmax(losses > 1e3)) + 1
    noisy = losses[:n_seen] + 1e-3 * np.random.default_rng(0).standard_normal(n_seen)
    read = rate_finder._suggested(rates[:n_seen].tolist(), noisy.tolist(), limit=4.0, ended="diverged")
    assert read.steepest == pytest.approx(1e-3, rel=0.35)
    assert 1e-3 < 10 * read.minimum_tenth < 3e-2
    assert 3e-5 < read.valley < 3e-3


@pytest.mark.parametrize("shape", ["flat", "rising"])
def test_a_loss_that_falls_nowhere_is_refused(shape: str) -> None:
    rates = np.geomspace(1e-6, 1.0, 80)
    losses = 1.0 + 0.05 * np.random.default_rng(0).standard_normal(80) + (rates if shape == "rising" else 0.0)
    with pytest.raises(UserError, match="no rate at which the loss falls"):
        rate_finder._suggested(rates.tolist(), losses.tolist(), limit=4.0, ended="highest rate")


def test_the_longest_fall_of_a_row() -> None:
    assert rate_finder._longest_fall(np.array([3.0, 5.0, 4.0, 4.5, 2.0, 3.0, 1.0])) == [1, 2, 4, 6]
    assert rate_finder._longest_fall(np.array([1.0, 2.0])) == [0]


def test_steps_are_those_of_a_training() -> None:
    settings = Settings(batch_size=5, accumulate=2)
    steps = rate_finder._steps(23, 7, settings)
    assert [[(epoch, i) for epoch, i, _ in step] for step in steps[:4]] == [
        [(0, 0), (0, 1)], [(0, 2), (0, 3)], [(0, 4)], [(1, 0), (1, 1)],
    ]  # fmt: skip
    assert sorted(np.concatenate([numbers for step in steps[:3] for _, _, numbers in step])) == list(range(23))
    assert len(steps) == 7


@pytest.mark.parametrize("name", ["resnet18", "alexnet"])
def test_real_families_come_back_as_they_were(name: str) -> None:
    staged = torchvision_model(name, 64)
    before = weights_of(staged)
    with suppress(UserError):
        find_rates(
            staged,
            plan_for(staged, unfreeze="last:1"),
            pictures(4, side=64),
            settings=Settings(batch_size=2),
            device=CPU,
            n_steps=2,
        )
    after = staged.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_weights_that_give_no_finite_loss_are_refused() -> None:
    staged = tiny()
    before = everything(staged)
    undo = not_finite_from(staged, 0)
    with pytest.raises(UserError, match="not finite before the first step"):
        found(staged, plan_for(staged))
    undo()
    assert_untouched(staged, before)


def test_a_curve_is_drawn(tmp_path: Path) -> None:
    staged = tiny()
    result = found(staged, plan_for(staged, from_scratch=True))
    assert draw_rates(result, path=tmp_path / "rates.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["suggested"] == pytest.approx(
        result.steepest, rel=0.05
    )
