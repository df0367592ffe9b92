"""Rehearsal by distillation: against the loss by hand, at the start, in the loop, and drawn alike each time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from making import Stop
from torch import nn
from trained import assert_same, stop_at
from tuning import CPU, TensorSource, pictures, plan_for, quick, tiny, weights_of

from featcache.cache.cache_file import Cache
from featcache.embedding.job import Embedding
from featcache.models.stages import StagedModel
from featcache.sources.image_sets import load_dataset
from finetune import training
from finetune.rehearsal import Rehearsal, Rehearsed, rehearsed_rows
from finetune.settings import Settings
from finetune.thawing import thaw


def own_head(scale: float = 1.0) -> nn.Linear:
    torch.manual_seed(7)
    head = nn.Linear(12, 5).requires_grad_(False)
    head.weight *= scale
    return head


def rehearsed(staged: StagedModel, n: int = 20) -> Rehearsed:
    rows = pictures(n, seed=3)
    with torch.no_grad():
        features = staged.trunk()(rows.inputs)
    return Rehearsed(cache=None, images=rows, features=features)  # type: ignore[arg-type]


def rehearsal(staged: StagedModel, weight: float = 3.0, head: nn.Linear | None = None, **settings: Any) -> Rehearsal:
    given = Settings(**{"batch_size": 8, **settings})
    return Rehearsal(staged, head or own_head(), rehearsed(staged), weight=weight, settings=given, device=CPU)


def test_the_loss_by_hand() -> None:
    """T^2 sum p (log p - log q) with the whole set in a batch, and a gradient in the thawed stages alone."""
    staged = tiny(dropout=0.0)
    plan = plan_for(staged, unfreeze="last:2")
    head = own_head(scale=20)  # answers that a change of the weights changes well beyond rounding
    term = rehearsal(staged, head=head, batch_size=64)
    start = term.rehearsed.features
    thawed = thaw(staged, plan, plan.phases[0])
    assert float(term(thawed, epoch=0, step=0, n_steps=1).detach()) == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        weight = staged.model.get_parameter("layer3.0.weight")
        weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    value = term(thawed, epoch=0, step=0, n_steps=1)
    value.backward()
    with torch.no_grad():
        now = staged.trunk()(pictures(20, seed=3).inputs)
        log_p, log_q = (F.log_softmax(head(features).double() / 2, 1) for features in (start, now))
    expected = 3.0 * 4 * float((log_p.exp() * (log_p - log_q)).sum(1).mean())
    assert expected > 0.01
    assert float(value.detach()) == pytest.approx(expected, rel=1e-4)
    for name, parameter in staged.model.named_parameters():
        assert (parameter.grad is not None) == name.startswith(("layer2", "layer3")), name
    assert term.head.weight.grad is None


def test_batches_follow_from_seed_epoch_and_step() -> None:
    staged = tiny(dropout=0.0)
    plan = plan_for(staged, unfreeze="all")
    with torch.no_grad():
        start = rehearsed(staged)
        staged.model.get_parameter("conv1.0.weight").add_(0.1)

    def value(seed: int, epoch: int, step: int) -> float:
        settings = Settings(batch_size=8, seed=seed)
        term = Rehearsal(staged, own_head(), start, weight=1.0, settings=settings, device=CPU)
        return float(term(thaw(staged, plan, plan.phases[0]), epoch=epoch, step=step, n_steps=5).detach())

    places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    values = [value(*place) for place in places]
    assert len(set(values)) == 4
    assert values == [value(*place) for place in places]


def test_it_keeps_the_answers_and_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In phases, the first of which trains the head alone, with dropout."""
    monkeypatch.setattr(training, "CHECKPOINT_SHARE", float("inf"))
    flags = {"progressive": True, "phase_epochs": [1, 2, 2], "unfreeze": "last:2", "epochs": None, "lr": 0.05}
    moved, models = [], []
    for weight in (None, 30.0):
        staged = tiny()
        start = rehearsed(staged)
        terms = [] if weight is None else [rehearsal(staged, weight)]
        quick(staged, plan_for(staged, **flags), terms=terms, validation=None)
        with torch.no_grad():
            now = own_head()(staged.trunk()(start.images.inputs)).softmax(1)
        moved.append(float((now - own_head()(start.features).softmax(1)).abs().mean()))
        models.append(weights_of(staged))
    assert moved[1] < moved[0] / 2
    for epoch in (1, 2, 4):
        where = {"checkpoint": tmp_path / f"{epoch}.pt", "validation": None}
        first, second = tiny(), tiny()
        plan = plan_for(first, **flags)
        with pytest.raises(Stop):
            quick(first, plan, terms=[rehearsal(first, 30.0)], on_epoch=stop_at(epoch), **where)
        quick(second, plan, terms=[rehearsal(second, 30.0)], resume=True, **where)
        assert_same(weights_of(second), models[1])


def test_an_epochs_images_are_asked_for_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that they can be read ahead; and they are those that a step by itself would get."""
    staged = tiny(dropout=0.0)
    plan = plan_for(staged, unfreeze="all")
    with torch.no_grad():
        start = rehearsed(staged)
        staged.model.get_parameter("conv1.0.weight").add_(0.1)
    thawed = thaw(staged, plan, plan.phases[0])

    def fresh() -> Rehearsal:
        return Rehearsal(staged, own_head(), start, weight=1.0, settings=Settings(batch_size=8), device=CPU)

    places = [(epoch, step) for epoch in range(2) for step in range(3)]
    alone = [float(fresh()(thawed, epoch=epoch, step=step, n_steps=step + 1).detach()) for epoch, step in places]
    asked: list[int] = []
    right = TensorSource.batches

    def batches(self: TensorSource, rows: Any, **more: Any) -> Any:
        asked.append(len(rows))
        return right(self, rows, **more)

    monkeypatch.setattr(TensorSource, "batches", batches)
    term = fresh()
    assert [float(term(thawed, epoch=epoch, step=step, n_steps=3).detach()) for epoch, step in places] == alone
    assert asked == [3, 3]


def test_images_stand_beside_their_features(cache: Cache, folder: Path, embed: Callable[..., Embedding]) -> None:
    """All training rows in the same order as the start's features of them, and no row of test."""
    found = rehearsed_rows(cache, load_dataset(str(folder)), device=CPU)
    assert len(found.features) == len(found.images.labels) == 40
    trunk = embed(folder).backbone.staged.trunk()
    with torch.no_grad():
        (images,) = found.images.batches([np.arange(40)], augment=False)
        torch.testing.assert_close(trunk(images), found.features, rtol=2e-2, atol=2e-3)  # as float16 rounds them
