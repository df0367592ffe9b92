"""Grids of hyper-parameters evenly spread on a log scale, and what continues them beyond an end."""

from __future__ import annotations

import math
from collections.abc import Sequence

from heads.fitting import Params

_MOST = 4  # values beyond an end


def decades(first: int, last: int, per_decade: int = 1) -> tuple[float, ...]:
    """Powers of ten from 10^first to 10^last, both included, to two digits."""
    n = abs(last - first) * per_decade
    return tuple(float(f"{10.0 ** (first + (last - first) * i / n):.1e}") for i in range(n + 1))


def further(grid: Sequence[float], best: float, *, up: bool) -> tuple[float, ...]:
    """Up to four values beyond `best`, nearest first, each to two digits, in steps as wide as the grid's at that end.

    Steps are measured in half powers of ten where they are about that wide; of a grid without two positive values they
    are a power of ten. Where `best` is not positive there is nothing beyond.
    """
    values = sorted(value for value in set(grid) if value > 0)
    if best <= 0:
        return ()
    low, high = (values[-2:] if up else values[:2]) if len(values) > 1 else (1.0, 10.0)
    step = math.log10(high / low)
    halves = round(2 * step) / 2
    if abs(step - halves) < 0.05:  # 3 and 10 are written for half a power of ten
        step = halves
    return tuple(float(f"{best * 10 ** (step * i * (1 if up else -1)):.1e}") for i in range(1, _MOST + 1))


def continued(
    grid: Sequence[float], best: Params, name: str, *, up: bool, high_is_strong: bool = False
) -> list[Params]:
    """Candidates like `best` but for the parameter `name`, which goes on beyond `best`; strong regularisation first."""
    values = sorted(further(grid, best[name], up=up), reverse=high_is_strong)
    return [best | {name: value} for value in values]
