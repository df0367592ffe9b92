"""What ``bin/finetune`` tries before it trains: ``--find-lr``, ``--lr auto``, ``--probe``; and what it says of them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from featcache.common.disk import explained
from finetune.gradient_probe import gradient_probe
from finetune.job_command import Job
from finetune.plan_tables import found_table, probe_table
from finetune.rate_finder import FoundRates, find_rates
from finetune.sources import Source
from heads.runs import plain_name

_ENDINGS = {
    "diverged": "the loss ran away",
    "not finite": "the loss was no longer finite",
    "highest rate": "no higher rates are tried",
}


def find_and_tell(job: Job, rows: Source) -> FoundRates:
    """Run a range test and tell what it found; --find-lr draws the curve where matplotlib is there.

    Raises:
        UserError: no rate is found, or the picture can't be written.
    """
    console, plan = job.console, job.plan
    with console.progress("range test", "steps") as progress:
        found = find_rates(job.backbone.staged, plan, rows, settings=job.settings, device=job.device, on_step=progress)
    console.table(*found_table(found, plan))
    console.note(
        f"{len(found.rates)} steps, from {found.rates[0]:.2g} to {found.rates[-1]:.2g}: {_ENDINGS[found.ended]}; "
        f"suggested, where it falls the steepest: --lr {found.suggested:.2g}"
    )
    if job.arguments.find_lr and find_spec("matplotlib"):
        from finetune.plots import draw_rates

        drawn = job.arguments.runs_dir / f"{plain_name(job.stem)}-lr.png"
        with explained(drawn.parent):
            drawn.parent.mkdir(parents=True, exist_ok=True)
            draw_rates(found, path=drawn)
        console.note(f"curve {drawn}")
    return found


def probe_and_tell(job: Job, rows: Source) -> dict[str, Any]:
    """Take gradients before training and tell what they suggest.

    Raises:
        UserError: they are not finite.
    """
    console, staged = job.console, job.backbone.staged
    with console.progress("gradients", "batches") as progress:
        probe = gradient_probe(staged, rows, settings=job.settings, device=job.device, on_batch=progress)
    console.table(*probe_table(probe, staged))
    console.note(f"stages with at least half the largest: {probe.flag}; advice only, the model is as it was")
    if job.plan.init_head is None:
        console.note("  through a random final layer: with --init-head RUN the gradients are those of a fitted head")
    return probe.to_json()
