"""A seed in; an order, random numbers and algorithms that are the same again out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch

from featcache.common.machine import full_fp32
from finetune.settings import Settings
from finetune.sources import Labels


def shuffled(n_rows: int, n_parts: int, *, seed: tuple[int, int]) -> list[Labels]:
    """All row numbers in a random order, in parts that differ by one row at most, so that none is a sliver."""
    return np.array_split(np.random.default_rng(seed).permutation(n_rows), n_parts)


def seed_by(*numbers: int) -> None:
    """Seed torch's generators, on all devices, by all of these numbers."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))


@contextmanager
def reproducible(settings: Settings, device: torch.device) -> Iterator[None]:
    """Choose algorithms that give the same bits again, and leave the caller's random numbers as they were."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), full_fp32() if settings.precision == "fp32" else nullcontext():
            yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before
