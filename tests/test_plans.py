"""Plans: what flags come to, which stages train when and how fast, and what contradicts itself."""

from __future__ import annotations

import pytest

from featcache.common.errors import UsageError
from finetune.planning import make_plan
from finetune.plans import Plan

RESNET = ["stem", "layer1", "layer2", "layer3", "layer4"]


def plan(**flags: object) -> Plan:
    return make_plan(RESNET, "fc", **{"lr": 1e-3, **flags})


@pytest.mark.parametrize(
    ("flags", "method", "trained"),
    [
        ({}, "head", []),
        ({"unfreeze": "layer4"}, "partial:layer4", ["layer4"]),
        ({"unfreeze": "layer4,layer3"}, "partial:layer3,layer4", ["layer3", "layer4"]),
        ({"unfreeze": "last:2"}, "partial:layer3,layer4", ["layer3", "layer4"]),
        ({"unfreeze": "last:5"}, "full", RESNET),
        ({"unfreeze": "all"}, "full", RESNET),
        ({"freeze": "early"}, "freeze:early", ["stem", "layer3", "layer4"]),
        ({"freeze": "middle"}, "freeze:middle", ["stem", "layer1", "layer4"]),
        ({"freeze": "stem,layer1"}, "freeze:stem,layer1", ["layer2", "layer3", "layer4"]),
        ({"progressive": True}, "progressive", RESNET),
        ({"progressive": True, "unfreeze": "last:2"}, "progressive", ["layer3", "layer4"]),
        ({"lr_decay": 3.0}, "discriminative", RESNET),
        ({"lr_decay": 3.0, "unfreeze": "layer4"}, "discriminative", ["layer4"]),
        ({"lr_per_stage": {"layer4": 3e-4, "fc": 1e-3}}, "discriminative", RESNET),
        ({"lr_per_stage": {"fc": 1e-2}}, "head", []),
        ({"from_scratch": True}, "scratch", RESNET),
        ({"init_head": "runs/x"}, "lp-ft", RESNET),
        ({"init_head": "runs/x", "unfreeze": "layer4"}, "lp-ft", ["layer4"]),
    ],
)
def test_flags_become_a_plan(flags: dict[str, object], method: str, trained: list[str]) -> None:
    made = plan(**flags)
    assert made.method == method
    assert list(made.trained) == trained
    assert set(made.rates) == {*trained, "fc"}
    assert made.phases[-1].stages == made.trained
    assert made.epochs == 10


def test_rates_fall_from_the_head_down() -> None:
    made = plan(lr=0.9, lr_decay=3.0)
    expected = {"fc": 0.9, "layer4": 0.3, "layer3": 0.1, "layer2": 0.1 / 3, "layer1": 0.1 / 9, "stem": 0.1 / 27}
    assert made.rates == pytest.approx(expected)
    # the k-th stage from the end, whether or not those after it train
    assert plan(lr=0.9, lr_decay=3.0, freeze="layer4").rates["layer3"] == pytest.approx(0.1)
    made = plan(unfreeze="last:2", lr_per_stage={"layer4": 3e-4, "head": 1e-2})
    assert made.rates == {"layer3": 1e-3, "layer4": 3e-4, "fc": 1e-2}


def test_progressive_thaws_from_the_last_stage_with_falling_rates() -> None:
    made = plan(progressive=True, epochs=8, phase_decay=3.0)
    assert [phase.stages for phase in made.phases] == [tuple(RESNET[5 - k :]) for k in range(6)]
    assert [phase.epochs for phase in made.phases] == [1, 1, 1, 1, 2, 2]
    assert [phase.factor for phase in made.phases] == pytest.approx([3.0**-k for k in range(6)])
    assert [made.cut(phase) for phase in made.phases] == [5, 4, 3, 2, 1, 0]
    assert [made.phase_at(epoch) for epoch in (0, 3, 4, 5, 6)] == [(0, 0), (3, 3), (4, 4), (4, 4), (5, 6)]
    names = [made.name_of(phase) for phase in made.phases]
    assert names == ["head", "layer4+head", "layer3 to head", "layer2 to head", "layer1 to head", "all"]
    assert [p.epochs for p in plan(progressive=True, phase_epochs=[2]).phases] == [2] * 6
    assert [p.epochs for p in plan(progressive=True, phase_epochs=[3, 1, 1, 1, 1, 2]).phases] == [3, 1, 1, 1, 1, 2]


def test_a_frozen_stage_above_the_lowest_thawed_one_needs_gradient() -> None:
    made = plan(freeze="middle")
    assert made.cut(made.phases[0]) == 0
    made = plan(unfreeze="layer2,layer4")
    assert made.cut(made.phases[0]) == 2


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, "eval"),
        ({"from_scratch": True}, "train"),
        ({"pretrained": False}, "train"),
        ({"pretrained": False, "init_head": "run"}, "eval"),  # its head fits the statistics that are kept
        ({"batch_norm": "train"}, "train"),
        ({"from_scratch": True, "batch_norm": "eval"}, "eval"),
    ],
)
def test_batch_norm(flags: dict[str, object], expected: str) -> None:
    assert plan(**flags).batch_norm == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"unfreeze": "layer4", "freeze": "early"}, "--unfreeze and --freeze exclude one another"),
        ({"progressive": True, "freeze": "early"}, "--progressive and --freeze exclude"),
        ({"lr_decay": 3.0, "lr_per_stage": {"fc": 1.0}}, "--lr-decay and --lr-per-stage exclude"),
        ({"from_scratch": True, "init_head": "x"}, "--from-scratch and --init-head exclude"),
        ({"from_scratch": True, "unfreeze": "layer4"}, "--from-scratch and --unfreeze layer4 exclude"),
        ({"from_scratch": True, "freeze": "early"}, "--from-scratch and --freeze exclude"),
        ({"from_scratch": True, "progressive": True}, "--from-scratch and --progressive exclude"),
        ({"phase_epochs": [1]}, "--phase-epochs is for --progressive"),
        ({"progressive": True, "phase_epochs": [1, 2]}, "expected one number, or 6"),
        ({"progressive": True, "phase_epochs": [1], "epochs": 5}, "--phase-epochs come to 6"),
        ({"progressive": True, "epochs": 5}, "there are 6 phases"),
        ({"unfreeze": "layer5"}, "did you mean"),
        ({"unfreeze": "last:0"}, "expected last:1 to last:5"),
        ({"unfreeze": "last:6"}, "expected last:1 to last:5"),
        ({"unfreeze": "last:x"}, "expected last:1 to last:5"),
        ({"freeze": "layer5"}, "did you mean"),
        ({"freeze": ","}, "names no stage"),
        ({"lr_per_stage": {"layer5": 1.0}}, "did you mean"),
        ({"lr_per_stage": {"layer1": 1.0}, "unfreeze": "layer4"}, "that stage is frozen"),
        ({"lr_decay": 0.5}, "--lr-decay 0.5"),
        ({"phase_decay": 0.5}, "--phase-decay 0.5"),
        ({"lr": 0.0}, "--lr 0"),
        ({"epochs": 0}, "--epochs 0"),
        ({"progressive": True, "phase_epochs": [0]}, "--phase-epochs 0"),
    ],
)
def test_what_contradicts_itself_is_refused(flags: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        plan(**flags)
    assert "\n" not in str(caught.value)


def test_a_model_of_one_stage_has_no_inner_parts() -> None:
    with pytest.raises(UsageError, match="too few"):
        make_plan(["stem"], "fc", lr=1.0, freeze="early")
    assert make_plan(["stem"], "fc", lr=1.0, unfreeze="all").method == "full"
