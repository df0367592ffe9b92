"""A model, a plan and rows in; the learning rates that a range test suggests out, and the model as it was.

The range test (Smith 2015, arXiv:1506.01186, section 3.3) trains some steps, each at a higher rate than the one before,
until the loss runs away. One multiplier goes over the rates of all groups, so their ratios are the plan's throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import count, islice
from math import inf, isfinite, log, pi, sqrt
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  as everyone calls it
from numpy.typing import NDArray

from featcache.common.errors import UserError
from featcache.models.stages import StagedModel
from finetune.forward import Forward
from finetune.mixing import mixed
from finetune.optimizers import make_optimizer, set_rates
from finetune.plans import Phase, Plan
from finetune.repeating import reproducible, seed_by, shuffled
from finetune.settings import Settings
from finetune.sources import Labels, Source
from finetune.thawing import thaw
from finetune.untouched import untouched

#: The head's rates that are tried, by optimizer, unless told otherwise.
RANGES: dict[str, tuple[float, float]] = {"adamw": (1e-6, 1.0), "adam": (1e-6, 1.0), "sgd": (1e-5, 10.0)}
#: How many: 13 for each power of ten.
STEPS = 80
#: The loss runs away where its running mean is so many times its lowest, and worse than guessing.
_RUNAWAY = 4.0
#: Of the running mean: how much of the mean before is kept.
_KEPT = 0.8
#: Of the smoothed curve: the standard deviation of the Gaussian window, in steps.
_WIDTH = 2.0

Ending = Literal["diverged", "not finite", "highest rate"]
#: The batches of a step, each with its epoch and its number there, which seed what is random in it.
_Step = list[tuple[int, int, Labels]]


@dataclass(frozen=True, kw_only=True)
class FoundRates:
    """What a range test found; every rate is the head's, and the other groups have theirs in the plan's ratio to it.

    Attributes:
        rates: (n,) that were tried, rising by one factor.
        losses: (n,) of a step's rows, each before its step.
        smoothed: (n,) the same, smoothed along the rates by a window that is alike on both sides.
        steepest: where the loss falls the fastest for each factor on the rate.
        valley: in the middle of the longest fall: of the longest row of rates each of which has a lower loss than the
            one before (rates between them may be left out).
        minimum_tenth: a tenth of the rate with the lowest loss.
        ended: why no higher rate was tried.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    steepest: float
    valley: float
    minimum_tenth: float
    ended: Ending

    @property
    def suggested(self) -> float:
        """What ``--lr auto`` takes: the steepest, to two digits. The window does not lag behind: it is where it is."""
        return float(f"{self.steepest:.2g}")

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        return {"suggested": self.suggested, **asdict(self)}


def find_rates(
    staged: StagedModel,
    plan: Plan,
    rows: Source,
    *,
    settings: Settings,
    device: torch.device,
    lowest: float | None = None,
    highest: float | None = None,
    n_steps: int = STEPS,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> FoundRates:
    """Try rising rates on all that the plan ever trains, with the optimizer and batches of a training.

    The model's parameters, buffers, gradients and modes and torch's random numbers are put back in every case. The
    optimizer is the test's own. The same call gives the same answer.

    Args:
        staged: the model, its head made for the classes.
        plan: what trains, and the ratios of its rates.
        rows: to train on; gone through more than once where they are few.
        settings: how; the schedule and the averaging of weights are left out.
        device: where to compute; the model is moved there.
        lowest, highest: the head's rates to begin and end with; None takes those of `RANGES`.
        n_steps: how many rates, spaced by one factor.
        on_step: called after each step with how many were done, and how many there are at most.

    Raises:
        UserError: the loss is not finite before the first step, or falls at no rate.
    """
    first, last = RANGES[settings.optimizer]
    lowest, highest = lowest or first, highest or last
    assert 0 < lowest < highest, (lowest, highest)
    assert n_steps > 1
    rates: list[float] = np.geomspace(lowest, highest, n_steps).tolist()
    losses: list[float] = []
    ended: Ending = "highest rate"
    watch = _Watch(staged.head.out_features)
    with untouched(staged.model), reproducible(settings, device):
        order = torch.channels_last if settings.channels_last else torch.contiguous_format
        staged.model.to(device, memory_format=order)  # type: ignore[call-overload]
        optimizer = make_optimizer(staged, plan, settings)
        scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        thawed = thaw(staged, plan, Phase(stages=plan.trained, epochs=1))
        thawed.check_optimized(optimizer)
        source = rows.serving(thawed.cut)
        forward = Forward(staged, cut=thawed.cut, source_cut=source.cut, settings=settings, device=device)
        thawed.set_modes()
        steps = _steps(len(rows.labels), n_steps, settings)
        stream = source.batches([numbers for step in steps for _, _, numbers in step], augment=True)
        for rate, step in zip(rates, steps, strict=True):
            set_rates(optimizer, rate / plan.rates[plan.head])
            n_images = sum(len(numbers) for _, _, numbers in step)
            loss_sum = torch.zeros((), device=device)
            for epoch, i, numbers in step:
                seed_by(settings.seed, epoch, i)
                inputs = next(stream)
                labels = torch.from_numpy(rows.labels[numbers]).to(device)
                inputs, targets = mixed(inputs, labels, mix=settings.mix, n_classes=staged.head.out_features)
                logits = forward(inputs)
                loss = F.cross_entropy(logits, targets, label_smoothing=settings.label_smoothing, reduction="sum")
                scaler.scale(loss / n_images).backward()  # type: ignore[no-untyped-call]
                loss_sum += loss.detach()
            mean = float(loss_sum) / n_images
            if not isfinite(mean):
                ended = "not finite"
                break
            losses.append(mean)
            on_step(len(losses), n_steps)
            if watch.runs_away(mean):
                ended = "diverged"
                break
            if settings.clip is not None:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(list(thawed.parameters.values()), settings.clip)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
    if not losses:
        raise UserError("the loss is not finite before the first step of the range test: take fp32, or other weights")
    return _suggested(rates[: len(losses)], losses, limit=watch.limit, ended=ended)


def _steps(n_rows: int, n_steps: int, settings: Settings) -> list[_Step]:
    """The first steps of a training, epoch after epoch."""
    n_micro, turns = settings.passes_per_epoch(n_rows), settings.accumulate

    def endless() -> Iterator[_Step]:
        for epoch in count():
            parts = shuffled(n_rows, n_micro, seed=(settings.seed, epoch))
            batches = [(epoch, i, numbers) for i, numbers in enumerate(parts)]
            yield from (batches[start : start + turns] for start in range(0, n_micro, turns))

    return list(islice(endless(), n_steps))


class _Watch:
    """Losses in, one after the other; whether they run away out."""

    def __init__(self, n_classes: int) -> None:
        self.chance = log(max(2, n_classes))
        self.n_seen, self.weighted, self.lowest = 0, 0.0, inf

    @property
    def limit(self) -> float:
        """What the running mean must not exceed."""
        return max(_RUNAWAY * self.lowest, self.chance)

    def runs_away(self, loss: float) -> bool:
        self.n_seen += 1
        self.weighted = _KEPT * self.weighted + (1 - _KEPT) * loss
        mean = self.weighted / (1 - _KEPT**self.n_seen)
        self.lowest = min(self.lowest, mean)
        return mean > self.limit


def _suggested(rates: list[float], losses: list[float], *, limit: float, ended: Ending) -> FoundRates:
    """Read the curve.

    Raises:
        UserError: it does not fall by more than its own noise.
    """
    clipped = np.minimum(losses, limit)  # so that the last losses, which may be huge, don't outweigh those before
    smoothed = _smoothed(clipped)
    lowest = int(smoothed.argmin())
    noise = float(np.std((clipped - smoothed)[: lowest + 1])) / (2 * sqrt(pi) * _WIDTH) ** 0.5
    start = float(clipped[: max(1, min(len(losses) // 4, lowest))].mean())
    if start - smoothed[lowest] <= 4 * noise:
        raise UserError(
            f"the range test found no rate at which the loss falls: {start:.4g} at the lowest, at best "
            f"{smoothed[lowest]:.4g}, tried up to {rates[-1]:.2g}; give --lr"
        )
    slopes = np.diff(smoothed[: lowest + 1])
    members = _longest_fall(smoothed)
    return FoundRates(
        rates=tuple(rates),
        losses=tuple(losses),
        smoothed=tuple(smoothed.tolist()),
        steepest=rates[int(slopes.argmin())],
        valley=rates[members[len(members) // 2]],
        minimum_tenth=rates[lowest] / 10,
        ended=ended,
    )


def _smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means weighted by a Gaussian window, which is cut at the ends."""
    places = np.arange(len(values))
    weights = np.exp(-0.5 * ((places[:, None] - places) / _WIDTH) ** 2)
    return weights @ values / weights.sum(axis=1)


def _longest_fall(values: NDArray[np.float64]) -> list[int]:
    """The places of the longest falling subsequence, of equals that which ends first."""
    lengths, before = [1] * len(values), [-1] * len(values)
    for i in range(len(values)):
        for j in range(i):
            if values[j] > values[i] and lengths[j] >= lengths[i]:
                lengths[i], before[i] = lengths[j] + 1, j
    place = lengths.index(max(lengths))
    places = []
    while place >= 0:
        places.append(place)
        place = before[place]
    return places[::-1]
