"""What is frozen stands still and costs nothing; what should train does; else the run fails."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trained import HalfUsedModel
from tuning import plan_for, quick, tiny, weights_of

from featcache.models.stages import StagedModel
from finetune import state, training
from finetune.optimizers import make_optimizer
from finetune.plans import Plan
from finetune.thawing import FrozenError, Thawed, moving_state, thaw


def changed(staged: StagedModel, before: Mapping[str, Tensor]) -> set[str]:
    """The stages, and the head, of which some parameter moved."""
    moved = {name for name, tensor in staged.model.state_dict().items() if not torch.equal(tensor, before[name])}
    stages = {stage.name for stage in staged.stages if moved & set(stage.parameters)}
    return stages | ({"head"} if any(name.startswith(staged.head_name) for name in moved) else set())


@pytest.mark.parametrize("batch_norm", ["eval", "train"])
@pytest.mark.parametrize(
    ("flags", "trained"),
    [
        ({}, "head"),
        ({"unfreeze": "layer3"}, "layer3 head"),
        ({"freeze": "middle"}, "stem layer2 layer3 head"),
        ({"unfreeze": "all"}, "stem layer1 layer2 layer3 head"),
    ],
    ids=str,
)
def test_what_is_frozen_stands_still(flags: dict[str, Any], trained: str, batch_norm: str) -> None:
    staged = tiny()
    before = weights_of(staged)
    plan = plan_for(staged, batch_norm=batch_norm, **flags)
    done = quick(staged, plan, validation=None)
    assert changed(staged, before) == set(trained.split())
    moving = moving_state(staged, plan.trained, plan.batch_norm)
    for name, tensor in weights_of(staged).items():
        if "running" in name or "num_batches" in name:
            in_train_mode = name in moving
            assert in_train_mode == (batch_norm == "train" and _stage(staged, name) in trained.split())
            assert torch.equal(tensor, before[name]) != in_train_mode, name
    assert done.frozen_sha256["before"] == done.frozen_sha256["after"]


def _stage(staged: StagedModel, buffer: str) -> str:
    return next(s.name for s in staged.stages if any(buffer.startswith(f"{m}.") for m in s.modules))


@pytest.mark.parametrize("batch_norm", ["eval", "train"])
def test_frozen_stages_run_in_eval_mode(batch_norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither BatchNorm nor dropout of a frozen stage may be in train mode in any forward pass."""
    staged = tiny()
    modes: dict[str, set[bool]] = {}
    for name, module in staged.model.named_modules():
        if isinstance(module, (nn.BatchNorm2d, nn.Dropout)):
            module.register_forward_hook(lambda m, _i, _o, name=name: modes.setdefault(name, set()).add(m.training))
    quick(staged, plan_for(staged, unfreeze="layer2,layer3", batch_norm=batch_norm), validation=None)
    for name, seen in modes.items():
        thawed = name.startswith(("layer2", "layer3"))
        assert seen == {thawed and (batch_norm == "train" or name.endswith(".3"))}, name


def test_dropout_within_timms_batch_norm_trains_whatever_statistics_do() -> None:
    timm_layers = pytest.importorskip("timm.layers")
    staged = tiny()
    staged.model.set_submodule("layer3.1", timm_layers.BatchNormAct2d(12, drop_layer=nn.Dropout))
    plan = plan_for(staged, unfreeze="layer3")
    thaw(staged, plan, plan.phases[0]).set_modes()
    layer = staged.model.get_submodule("layer3.1")
    assert (layer.training, layer.drop.training, layer.act.training) == (False, True, True)


def test_a_frozen_stage_in_train_mode_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    staged = tiny()
    monkeypatch.setattr(Thawed, "set_modes", lambda self: self.staged.model.train())
    with pytest.raises(FrozenError, match="moved: SHA-256"):
        quick(staged, plan_for(staged, unfreeze="layer3"))


def test_a_thawed_stage_outside_the_optimizer_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    staged = tiny()
    right = make_optimizer

    def only_the_first_phase(staged: StagedModel, plan: Plan, settings: Any) -> torch.optim.Optimizer:
        optimizer = right(staged, plan, settings)
        optimizer.param_groups = [g for g in optimizer.param_groups if g["name"] == plan.head]
        return optimizer

    monkeypatch.setattr(state, "make_optimizer", only_the_first_phase)
    with pytest.raises(FrozenError, match=r"layer3.*the optimizer does not hold them"):
        quick(staged, plan_for(staged, progressive=True, epochs=5))


def test_a_parameter_that_never_had_a_gradient_fails_the_run() -> None:
    staged = StagedModel(HalfUsedModel().requires_grad_(False), torch.zeros(1, 3, 16, 16))
    with pytest.raises(FrozenError, match="never had a gradient"):
        quick(staged, plan_for(staged, unfreeze="all"))


def test_stages_below_the_lowest_thawed_one_keep_nothing_for_the_gradient() -> None:
    """No graph leads into a frozen leading stage, and none of its maps is kept; so each frozen stage saves time."""
    n_kept = []
    for flags in ({}, {"unfreeze": "last:1"}, {"unfreeze": "last:3"}, {"unfreeze": "all"}):
        staged = tiny()
        plan = plan_for(staged, epochs=1, **flags)
        with_graph: set[str] = set()

        def note(_module: nn.Module, _inputs: object, output: Tensor, name: str, seen: set[str]) -> None:
            if output.requires_grad:
                seen.add(name)

        for stage in staged.stages:
            module = staged.model.get_submodule(stage.modules[0])
            module.register_forward_hook(partial(note, name=stage.name, seen=with_graph))
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, kept=kept: kept.append(tensor) or tensor, lambda t: t
        ):
            quick(staged, plan, validation=None)
        assert with_graph == set(plan.trained)
        assert any(tensor.ndim == 4 for tensor in kept) == bool(plan.trained)
        n_kept.append(len(kept))
    assert n_kept == sorted(set(n_kept))


def test_what_a_later_phase_thaws_may_not_move_before(monkeypatch: pytest.MonkeyPatch) -> None:
    staged = tiny()
    right = training.set_rates

    def meddling(optimizer: torch.optim.Optimizer, factor: float) -> None:
        right(optimizer, factor)
        with torch.no_grad():
            staged.model.get_parameter("layer2.0.weight").add_(1e-3)

    monkeypatch.setattr(training, "set_rates", meddling)
    with pytest.raises(FrozenError, match="what phase head freezes moved"):
        quick(staged, plan_for(staged, progressive=True, epochs=5))
