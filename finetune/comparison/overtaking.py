"""Learning curves of a head and of a fine-tuning in; from how many rows on the latter is ahead, and how sure, out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finetune.comparison.groups import Group, common_seeds, comparable
from finetune.comparison.results import MARGIN, Overtaking
from heads.evidence.paired_seeds import seeds_difference

_RESAMPLES = 2000
_SEED = 0

Doubles = NDArray[np.float64]


def overtaking_of(groups: Sequence[Group], head: Group, tuned: Group) -> Overtaking | None:
    """Where the curve of a tuned method comes to lie above a head's, both over the shares of the rows that both ran.

    The curves are drawn straight between sizes on a logarithmic scale. The interval is the percentile bootstrap's: the
    test images, the same for all sizes, and the seeds are drawn again 2,000 times. None for fewer than two sizes.
    """
    own = comparable(groups)
    by_size: dict[int, tuple[NDArray[np.bool_], NDArray[np.bool_]]] = {}
    for below in own:
        if (below.backbone, below.method) != (head.backbone, head.method):
            continue
        for above in own:
            same = (above.backbone, above.method, above.fraction) == (tuned.backbone, tuned.method, below.fraction)
            if same and (seeds := common_seeds(below, above)):
                by_size[below.n_train] = above.hits(seeds), below.hits(seeds)
    sizes = np.array(sorted(by_size), np.float64)
    if len(sizes) < 2:
        return None
    hits = [by_size[int(size)] for size in sizes]
    unlike = [above.astype(np.float64) - below for above, below in hits]
    found = crossing(sizes, np.array([part.mean() for part in unlike]))
    drawn = _redrawn(sizes, unlike)
    low_end, high_end = np.quantile(drawn, (0.025, 0.975), method="nearest")
    smallest, largest = int(sizes[0]), int(sizes[-1])
    rows = float(found) if smallest < found <= largest else None
    low_rows = float(low_end) if smallest < low_end <= largest else None
    high_rows = float(high_end) if smallest < high_end <= largest else None
    return Overtaking(
        rows=rows,
        low=low_rows,
        high=high_rows,
        smallest=smallest,
        largest=largest,
        told=_told(
            found,
            low_end,
            high_end,
            smallest,
            largest,
            tuned.method,
            excluded=seeds_difference(*hits[-1]).ci95[1] < MARGIN,
        ),
    )


def crossing(sizes: Doubles, gains: Doubles) -> float:
    """The size, interpolated on a logarithmic scale, from which on gains (n,) at sizes (n,) stay above 0.

    The smallest size where all are; infinite where the last is not.
    """
    if gains[-1] <= 0:
        return float("inf")
    behind = np.flatnonzero(gains <= 0)
    if not len(behind):
        return float(sizes[0])
    last = int(behind[-1])
    share = -gains[last] / (gains[last + 1] - gains[last])
    return float(sizes[last] * (sizes[last + 1] / sizes[last]) ** share)


def _redrawn(sizes: Doubles, unlike: Sequence[Doubles]) -> Doubles:
    """Crossings (R,) with images and seeds drawn again; unlike is (S, N) for each size."""
    rng = np.random.default_rng(_SEED)
    n_rows = unlike[0].shape[1]
    found = np.empty(_RESAMPLES)
    for number in range(_RESAMPLES):
        weights = rng.multinomial(n_rows, np.full(n_rows, 1 / n_rows)) / n_rows
        gains = [(part[rng.integers(0, len(part), len(part))] @ weights).mean() for part in unlike]
        found[number] = crossing(sizes, np.array(gains))
    return found


def _told(found: float, low: float, high: float, smallest: int, largest: int, method: str, *, excluded: bool) -> str:
    """``excluded``: whether the interval of the difference at the largest size excludes a gain of one point.

    The bootstrap alone does not show that a curve stays below: if few rows differ, all its draws may agree by chance.
    """
    if found > largest:
        if low > largest and excluded:
            return f"{method} does not overtake it at up to {largest:,} training rows"
        return f"{method} is not seen to overtake it at up to {largest:,} training rows, which leaves it undecided"
    fewer = f"{smallest:,} or fewer"
    where = f"from {fewer}" if found <= smallest else f"from about {two_digits(found)}"
    begin = fewer if low <= smallest else two_digits(low)
    end = fewer if high <= smallest else two_digits(high) if high <= largest else "never in sight"
    ends = begin if begin == end else f"{begin} to {end}"
    seen = "is ahead" if high <= largest else "is seen ahead, which may be chance,"
    return f"{method} {seen} {where} training rows on (95 % interval: {ends})"


def two_digits(rows: float) -> str:
    """A number of rows to two digits: no interpolation is worth more."""
    return f"{float(f'{rows:.2g}'):,.0f}"
