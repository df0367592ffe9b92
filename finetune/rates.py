"""A step's number in, the learning rate out: a pure function, so that a resumed run has the rates of any other.

What it gives is a factor. Each group's own peak rate is multiplied by it, so the ratios between groups never change.
"""

from __future__ import annotations

import math

from finetune.settings import Schedule

#: One-cycle begins at the peak over the first and ends at that over the second (Smith & Topin 2017, arXiv:1708.07120;
#: the numbers of torch's OneCycleLR).
_START, _END = 25.0, 1e4
#: ``step`` divides the rate by ten after these shares of the steps.
_MILESTONES = (0.5, 0.75)


def rate_factor(step: int, n_steps: int, *, schedule: Schedule, rise: float) -> float:
    """What the peak rates are multiplied by.

    Args:
        step: of the phase, from 0 to ``n_steps`` - 1.
        n_steps: of the phase.
        schedule: ``cosine`` falls to 0 (Loshchilov & Hutter 2017, arXiv:1608.03983), ``one-cycle`` rises from 1/25 and
            falls to 1/250,000 by cosines, ``step`` falls to a tenth after half of the steps and again after three
            quarters, ``constant`` stays.
        rise: the share of the steps in which the rate rises; linearly, but for one-cycle.

    Returns:
        A number above 0 and at most 1.
    """
    assert 0 <= step < n_steps
    if schedule == "one-cycle":
        top = rise * n_steps - 1
        if step <= top:
            return _between(1 / _START, 1.0, step / top if top > 0 else 1.0)
        return _between(1.0, 1 / (_START * _END), (step - top) / (n_steps - 1 - top))
    rising = round(rise * n_steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    if schedule == "cosine":
        return _between(1.0, 0.0, (step - rising) / (n_steps - rising))
    if schedule == "step":
        return 0.1 ** sum(step >= share * n_steps for share in _MILESTONES)
    return 1.0


def _between(first: float, last: float, share: float) -> float:
    """Half a cosine from one number to another."""
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2
