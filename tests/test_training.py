"""The one loop: against a plain loop of torch's, what it keeps, and what its settings change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from trained import ALL_RANDOM, assert_same, timeless
from tuning import pictures, plan_for, quick, tiny, weights_of

from featcache.common.errors import UserError
from featcache.models.stages import StagedModel
from finetune.plans import Plan
from finetune.rates import rate_factor
from finetune.share import WHOLE, Share


def plain_loop(staged: StagedModel, plan: Plan, *, n: int, batch_size: int) -> dict[str, Tensor]:
    """SGD with momentum 0.9 at constant rates, written out by hand: one velocity a parameter, kept over phases."""
    model, rows = staged.model.eval(), pictures(n)
    velocity: dict[str, Tensor] = {}
    for epoch in range(plan.epochs):
        number, _ = plan.phase_at(epoch)
        phase = plan.phases[number]
        rate = {name: plan.rates[s.name] for s in staged.stages for name in s.parameters if s.name in phase.stages}
        rate |= {f"{staged.head_name}.{name}": plan.rates[plan.head] for name in ("weight", "bias")}
        order = np.random.default_rng((0, epoch)).permutation(n)
        for numbers in np.array_split(order, -(-n // batch_size)):
            parameters = {name: model.get_parameter(name).requires_grad_() for name in rate}
            loss = F.cross_entropy(model(rows.inputs[numbers]), torch.from_numpy(rows.labels[numbers]))
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            with torch.no_grad():
                for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                    velocity[name] = 0.9 * velocity.get(name, torch.zeros_like(gradient)) + gradient
                    parameter -= rate[name] * phase.factor * velocity[name]
    model.requires_grad_(False)
    return weights_of(staged)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"unfreeze": "last:2"},
        {"freeze": "early", "lr_per_stage": {"stem": 0.05, "layer3": 0.003}},
        {"lr_decay": 3.0, "lr": 0.05},
        {"progressive": True, "epochs": 7, "lr_decay": 2.0, "lr": 0.05},
    ],
    ids=str,
)
def test_it_trains_as_a_plain_loop_does(flags: dict[str, Any]) -> None:
    """Newly thawed parameters move from their first step on, at their own rate, and the others keep their momentum."""
    ours, theirs = tiny(dropout=0.0), tiny(dropout=0.0)
    plan = plan_for(ours, **flags)
    quick(ours, plan, n=20, optimizer="sgd", weight_decay=0.0, schedule="constant", warmup=0.0, validation=None)
    expected = plain_loop(theirs, plan, n=20, batch_size=8)
    for name, tensor in weights_of(ours).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_the_same_seed_gives_the_same_bits_and_leaves_the_callers_alone() -> None:
    results = []
    for seed in (0, 0, 1):
        staged = tiny()
        torch.manual_seed(len(results))
        state = torch.get_rng_state()
        quick(staged, plan_for(staged, unfreeze="all", batch_norm="train"), seed=seed, **ALL_RANDOM)
        assert torch.equal(torch.get_rng_state(), state)
        results.append(weights_of(staged))
    assert_same(results[0], results[1])
    assert not torch.equal(results[0]["conv1.0.weight"], results[2]["conv1.0.weight"])


def test_the_history_tells_each_groups_rate() -> None:
    staged = tiny()
    plan = plan_for(staged, progressive=True, phase_epochs=[2], epochs=None, lr_decay=3.0)
    for schedule in ("cosine", "one-cycle", "step", "constant"):
        done = quick(staged, plan, schedule=schedule)
        for entry in done.history:
            number, first = plan.phase_at(entry["epoch"] - 1)
            phase = plan.phases[number]
            last_step = (entry["epoch"] - first) * 3 - 1
            rise = 0.3 if schedule == "one-cycle" else 0.05
            factor = rate_factor(last_step, phase.epochs * 3, schedule=schedule, rise=rise) * phase.factor
            expected = {group: plan.rates[group] * factor for group in (*phase.stages, "fc")}
            assert entry["rates"] == pytest.approx(expected)
            assert entry["lr"] == entry["rates"]["fc"]


def test_the_best_epoch_is_kept() -> None:
    staged = tiny()
    seen: list[dict[str, Tensor]] = []
    done = quick(
        staged, plan_for(staged, unfreeze="all", epochs=6, lr=0.3), on_epoch=lambda _: seen.append(weights_of(staged))
    )
    by_score = [(entry["val_accuracy"], -entry["val_loss"]) for entry in done.history]
    assert done.best_epoch == by_score.index(max(by_score)) + 1
    assert_same(weights_of(staged), seen[done.best_epoch - 1])
    validation = pictures(9, seed=1)
    with torch.no_grad():
        logits = staged.model(validation.inputs).numpy()
    np.testing.assert_allclose(done.val_scores, logits, rtol=1e-5, atol=1e-6)


def test_patience_ends_the_last_phase_alone() -> None:
    staged = tiny()
    still = {"lr": 1e-12, "lr_decay": None}  # nothing improves, so that the first epoch stays the best
    done = quick(
        staged, plan_for(staged, unfreeze="all", epochs=9, **still), patience=2, schedule="constant", optimizer="sgd"
    )
    assert (done.stopped_early, done.best_epoch, len(done.history)) == (True, 1, 3)
    plan = plan_for(staged, progressive=True, phase_epochs=[3, 3, 3, 3, 6], epochs=None, **still)
    done = quick(staged, plan, patience=2, schedule="constant", optimizer="sgd")
    assert (done.stopped_early, len(done.history)) == (True, 15)


def test_gradient_checkpointing_changes_nothing_but_memory() -> None:
    """Dropout is drawn alike, and BatchNorm's statistics move once."""
    results = []
    for checkpointing in (False, True):
        staged = tiny()
        quick(staged, plan_for(staged, unfreeze="last:3", batch_norm="train"), checkpointing=checkpointing)
        results.append(weights_of(staged))
    assert_same(results[0], results[1])


def test_accumulated_gradients_are_those_of_a_larger_batch() -> None:
    results = []
    for batch_size, accumulate in ((8, 1), (4, 2), (2, 4)):
        staged = tiny(dropout=0.0)
        quick(staged, plan_for(staged, unfreeze="all"), optimizer="sgd", batch_size=batch_size, accumulate=accumulate)
        results.append(weights_of(staged))
    for other in results[1:]:
        for name, tensor in results[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-6)


def test_the_average_of_the_weights_is_what_is_kept() -> None:
    staged = tiny(dropout=0.0)
    plan = plan_for(staged, epochs=3)
    seen: list[Tensor] = []
    quick(
        staged, plan, ema=0.5, validation=None, batch_size=24, on_epoch=lambda _: seen.append(staged.head.bias.clone())
    )
    average = tiny().head.bias
    for step, bias in enumerate(seen, start=1):
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * bias
    torch.testing.assert_close(staged.head.bias, average)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_too(precision: str) -> None:
    staged = tiny()
    done = quick(staged, plan_for(staged, unfreeze="last:2", epochs=3), precision=precision, clip=1.0)
    assert all(np.isfinite(entry["train_loss"]) for entry in done.history)
    assert all(tensor.isfinite().all() for tensor in weights_of(staged).values())
    assert staged.head.weight.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    staged = tiny()
    with pytest.raises(UserError, match="the loss is not finite by step"):
        quick(staged, plan_for(staged, unfreeze="all", epochs=30, lr=1e30), optimizer="sgd")


def test_memory_order_changes_values_in_the_last_bits_only() -> None:
    results = []
    for channels_last in (True, False):
        staged = tiny(dropout=0.0)
        quick(staged, plan_for(staged, unfreeze="all"), channels_last=channels_last)
        results.append(weights_of(staged))
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, rtol=1e-3, atol=1e-5)


class Cached:
    """A source that has run the frozen stages already, where a phase allows it; else the images."""

    def __init__(self, staged: StagedModel, cut: int, n: int) -> None:
        self.images, self.cut = pictures(n), cut
        self.labels = self.images.labels
        with torch.no_grad():
            self.maps = staged.trunk(cut)(self.images.inputs)

    def serving(self, cut: int) -> Any:
        return self if cut >= self.cut else self.images

    def batches(self, rows: Any, *, augment: bool, share: Share = WHOLE) -> Iterator[Tensor]:
        for numbers in rows:
            yield self.maps[torch.from_numpy(numbers)]


@pytest.mark.parametrize("flags", [{"unfreeze": "last:1"}, {"progressive": True, "epochs": 5}], ids=str)
def test_cached_maps_train_the_tail_to_the_same_bits(flags: dict[str, Any]) -> None:
    from_images, from_maps = tiny(dropout=0.0), tiny(dropout=0.0)
    plan = plan_for(from_images, **flags)
    quick(from_images, plan, rows=pictures(24))
    quick(from_maps, plan, rows=Cached(tiny(), 3, 24))
    assert_same(weights_of(from_maps), weights_of(from_images))


def test_steps_are_told() -> None:
    staged, told = tiny(), []
    quick(
        staged, plan_for(staged, epochs=2), n=20, accumulate=2, on_step=lambda done, total: told.append((done, total))
    )
    assert told == [(14, 40), (20, 40), (34, 40), (40, 40)]


def test_validation_by_the_average_leaves_the_training_alone() -> None:
    losses = []
    for validation in (None, pictures(9, seed=1)):
        staged = tiny()
        done = quick(staged, plan_for(staged, unfreeze="all", epochs=3), ema=0.9, validation=validation)
        losses.append([entry["train_loss"] for entry in done.history])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("flags", [{}, {"ema": 0.9, "patience": 2}], ids=str)
def test_a_test_curve_changes_nothing_else(flags: dict[str, Any]) -> None:
    results = []
    for test in (None, pictures(12, seed=2)):
        staged = tiny()
        done = quick(staged, plan_for(staged, unfreeze="all", epochs=5, lr=0.1), test=test, **flags)
        results.append((done, weights_of(staged)))
    (plain, weights), (drawn, others) = results
    assert_same(others, weights)
    assert drawn.best_epoch == plain.best_epoch
    curve = [(entry.pop("test_loss"), entry.pop("test_accuracy")) for entry in drawn.history]
    assert timeless(drawn.history) == timeless(plain.history)
    assert len(set(curve)) > 1


def test_a_test_curve_is_of_the_weights_that_validation_scores() -> None:
    staged, rows = tiny(), pictures(9, seed=1)
    done = quick(staged, plan_for(staged, epochs=3), ema=0.5, validation=rows, test=rows)
    assert [e["test_loss"] for e in done.history] == [e["val_loss"] for e in done.history]
    assert [e["test_accuracy"] for e in done.history] == [e["val_accuracy"] for e in done.history]
