"""Learning rates as a pure function of the step, torch's own schedulers being the referees."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from featcache.common.errors import UsageError
from finetune.optimizers import set_rates
from finetune.rates import rate_factor
from finetune.settings import Schedule, Settings

N = 40


def factors(schedule: Schedule, *, n: int = N, rise: float = 0.0) -> list[float]:
    return [rate_factor(step, n, schedule=schedule, rise=rise) for step in range(n)]


def by_torch(make: object) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(N):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_cosine_and_steps_are_torchs() -> None:
    scheduling = torch.optim.lr_scheduler
    assert factors("cosine") == pytest.approx(by_torch(lambda o: scheduling.CosineAnnealingLR(o, N)))
    assert factors("step") == pytest.approx(by_torch(lambda o: scheduling.MultiStepLR(o, [N // 2, 3 * N // 4])))
    assert factors("constant") == [1.0] * N


def test_one_cycle_is_torchs() -> None:
    def make(optimizer: torch.optim.Optimizer) -> object:
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=N + 1, cycle_momentum=False)

    expected = by_torch(make)
    found = [rate_factor(step, N + 1, schedule="one-cycle", rise=0.3) for step in range(N)]
    assert found == pytest.approx(expected)


def test_a_warm_up_rises_to_the_peak() -> None:
    found = factors("cosine", rise=0.25)
    assert found[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert found[10] == max(found) == 1.0


@pytest.mark.parametrize("schedule", get_args(Schedule))
@pytest.mark.parametrize("n", [1, 2, 3, 7])
@pytest.mark.parametrize("rise", [0.0, 0.3, 0.9])
def test_any_number_of_steps_has_rates(schedule: Schedule, n: int, rise: float) -> None:
    assert all(0 < factor <= 1 for factor in factors(schedule, n=n, rise=rise))


@pytest.mark.parametrize("schedule", get_args(Schedule))
def test_no_schedule_changes_the_ratios_between_groups(schedule: Schedule) -> None:
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "peak": peak} for peak in (1e-2, 1e-3, 3e-5)]
    optimizer = torch.optim.SGD(groups, lr=0.0)
    for factor in factors(schedule, rise=0.3):
        set_rates(optimizer, factor)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([1e-2 * factor, 1e-3 * factor, 3e-5 * factor])


@pytest.mark.parametrize(
    "given",
    [
        {"optimizer": "lion"},
        {"schedule": "linear"},
        {"augment": "much"},
        {"mix": "x"},
        {"precision": "int8"},
        {"batch_size": 0},
        {"accumulate": 0},
        {"patience": 0},
        {"seed": -1},
        {"label_smoothing": 1.0},
        {"warmup": 1.0},
        {"ema": 1.0},
        {"momentum": -0.1},
        {"weight_decay": -1.0},
        {"clip": 0.0},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Settings(**given)
