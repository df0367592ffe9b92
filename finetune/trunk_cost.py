"""A model in; the seconds that its first stages take an image, and the memory order of what they give, out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from featcache.common.ranks import ALONE, Ranks
from featcache.models.stages import StagedModel
from finetune.forward import autocast
from finetune.settings import Settings

_IMAGES = 4
_PASSES, _SECONDS = 3, 1.0


@dataclass(frozen=True, kw_only=True)
class TrunkCost:
    """What the first stages of a model cost.

    Attributes:
        seconds: an image, without gradient.
        order: of the dimensions of their output in memory, the batch's among them, the outermost first.
    """

    seconds: float
    order: tuple[int, ...]


@torch.no_grad()
def trunk_costs(
    staged: StagedModel,
    cuts: Sequence[int],
    *,
    side: int,
    settings: Settings,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> dict[int, TrunkCost]:
    """The cost of the stages up to each of some cuts, by a few passes of black images.

    The model is moved to the device, in the memory order that it is trained in, and left in eval mode.

    Args:
        staged: the model.
        cuts: above 0.
        side: of the images, in pixels.
        settings: tell the precision and the memory order.
        device: where to compute.
        ranks: that all measure, and take what the first finds.
    """
    order = torch.channels_last if settings.channels_last else torch.contiguous_format
    staged.model.to(device, memory_format=order)  # type: ignore[call-overload]
    ends = sorted(set(cuts))
    parts = [staged.part(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    images = torch.zeros(_IMAGES, 3, side, side, device=device).to(memory_format=torch.channels_last)
    best = [float("inf")] * len(ends)
    orders: list[tuple[int, ...]] = []
    begun = time.perf_counter()
    for _ in range(_PASSES):
        maps = images
        orders = []
        for i, part in enumerate(parts):
            before = time.perf_counter()
            with autocast(device, settings.precision):
                maps = part(maps)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best[i] = min(best[i], time.perf_counter() - before)
            orders.append(_memory_order(maps))
        if time.perf_counter() - begun > _SECONDS:
            break
    best = ranks.share(best)
    costs, seconds = {}, 0.0
    for end, mine, memory in zip(ends, best, orders, strict=True):
        seconds += mine / _IMAGES
        costs[end] = TrunkCost(seconds=seconds, order=memory)
    return costs


def _memory_order(maps: torch.Tensor) -> tuple[int, ...]:
    strides = maps.stride()
    return tuple(sorted(range(maps.ndim), key=lambda dimension: -strides[dimension]))
