"""What ``bin/finetune`` tries before it trains: ``--find-lr``, ``--lr auto``, ``--probe``; and what it says of them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from featcache.command_line import Console
from featcache.disk import explained
from featcache.stages import StagedModel
from finetune.gradient_probe import gradient_probe
from finetune.plan_tables import found_table, probe_table
from finetune.plans import Plan
from finetune.rate_finder import FoundRates, find_rates
from finetune.settings import Settings
from finetune.sources import Source

_ENDINGS = {
    "diverged": "the loss ran away",
    "not finite": "the loss was no longer finite",
    "highest rate": "no higher rates are tried",
}


def find_and_tell(
    console: Console,
    staged: StagedModel,
    plan: Plan,
    rows: Source,
    *,
    settings: Settings,
    device: torch.device,
    drawn: Path | None,
) -> FoundRates:
    """Run a range test and tell what it found; the curve is drawn where a path is given and matplotlib is there.

    Raises:
        UserError: no rate is found, or the picture can't be written.
    """
    with console.progress("range test", "steps") as progress:
        found = find_rates(staged, plan, rows, settings=settings, device=device, on_step=progress)
    console.table(*found_table(found, plan))
    console.note(
        f"{len(found.rates)} steps, from {found.rates[0]:.2g} to {found.rates[-1]:.2g}: {_ENDINGS[found.ended]}; "
        f"suggested, where it falls the steepest: --lr {found.suggested:.2g}"
    )
    if drawn is not None and find_spec("matplotlib"):
        from finetune.plots import draw_rates

        with explained(drawn.parent):
            drawn.parent.mkdir(parents=True, exist_ok=True)
            draw_rates(found, path=drawn)
        console.note(f"curve {drawn}")
    return found


def probe_and_tell(
    console: Console, staged: StagedModel, rows: Source, *, settings: Settings, device: torch.device, fitted: bool
) -> dict[str, Any]:
    """Take gradients before training and tell what they suggest; ``fitted`` is whether the head's weights are.

    Raises:
        UserError: they are not finite.
    """
    with console.progress("gradients", "batches") as progress:
        probe = gradient_probe(staged, rows, settings=settings, device=device, on_batch=progress)
    console.table(*probe_table(probe, staged))
    console.note(f"stages with at least half the largest: {probe.flag}; advice only, the model is as it was")
    if not fitted:
        console.note("  through a random final layer: with --init-head RUN the gradients are those of a fitted head")
    return probe.to_json()
