"""A plan at one peak rate in; what training by it comes to on validation rows out, its weights kept in a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from featcache.common.errors import UserError
from featcache.common.files import one_line
from finetune.cached_rows import TuningRows
from finetune.comparison.starting import Start
from finetune.plans import Plan
from finetune.training import train

#: Of a trial, in its folder: where `finetune.tuned_run.fine_tune` looks for it.
CHECKPOINT = "chosen.pt"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A peak rate that was tried; of one that failed, accuracy and loss are None and the reason is told."""

    lr: float
    epochs: int | None
    val_accuracy: float | None
    val_loss: float | None
    seconds: float
    failure: str | None = None


def try_rate(
    start: Start,
    plan: Plan,
    rows: TuningRows,
    work: Path,
    fingerprint: str,
    on_step: Callable[[int, int], None],
    *,
    record_test_curve: bool,
) -> Trial:
    """Train at one rate, or go on with it; its checkpoint stays in ``work``, with the test curve where it is wanted."""
    work.mkdir(exist_ok=True)
    start.restore()
    lr = plan.rates[plan.head]
    try:
        trained = train(
            start.backbone.staged,
            plan,
            rows.train,
            settings=start.settings,
            validation=rows.val,
            test=rows.test if record_test_curve else None,
            device=start.device,
            checkpoint=work / CHECKPOINT,
            fingerprint=fingerprint,
            resume=True,
            on_step=on_step,
        )
    except UserError as error:
        return Trial(lr=lr, epochs=None, val_accuracy=None, val_loss=None, seconds=0.0, failure=one_line(error))
    best = trained.history[trained.best_epoch - 1]
    seconds = float(sum(entry["seconds"] for entry in trained.history))
    return Trial(
        lr=lr,
        epochs=trained.best_epoch,
        val_accuracy=best["val_accuracy"],
        val_loss=best["val_loss"],
        seconds=round(seconds, 3),
    )
