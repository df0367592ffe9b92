"""Planned cells in; each one run, or found as it was finished before, or told as failed, out."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field

from featcache.common.errors import UserError
from featcache.common.files import one_line
from finetune.comparison.cells import CellPlan
from finetune.comparison.results import LEFT_OUT, Cell
from heads.publishing import HeadPiece, fit_and_publish
from heads.runs import reset_peak_rss
from heads.search import Report
from heads.source import Source

Step = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What is called while cells run: with sentences, with a head's candidates, and with images gone through."""

    on_note: Callable[[str], None] = field(default=lambda note: None)
    on_candidate: Report | None = None
    on_step: Step = field(default=lambda done, total: None)


@dataclass(frozen=True, eq=False, kw_only=True)
class Outcome:
    """A cell as it came out: ``found`` where it had been finished before, ``seconds`` that it took now."""

    plan: CellPlan
    cell: Cell
    found: bool
    seconds: float


def run_cells(
    plans: Sequence[CellPlan],
    *,
    deadline: float | None = None,
    left_out: str = "the budget was spent",
    watching: Callable[[CellPlan], AbstractContextManager[Watch]] = lambda plan: nullcontext(Watch()),
) -> Iterator[Outcome]:
    """Go through cells in order, each told as soon as it is done.

    A cell that fails, whatever by, is told with its reason, and the rest goes on. Ctrl-C ends all of it; finished cells
    are kept, and unfinished fine-tuning goes on from its last checkpoint when it is run again.

    Args:
        plans: the cells.
        deadline: by `time.monotonic`; later no cell is begun, and those that are not finished are told as ``left_out``.
        watching: entered with each cell that is run now, for as long as it runs.
    """
    for plan in plans:
        began = time.monotonic()
        found, failure = False, None
        try:
            found = plan.is_finished()
            if not found:
                if deadline is not None and began >= deadline:
                    raise UserError(f"{LEFT_OUT}{left_out}")
                with watching(plan) as watch:
                    _run(plan, watch)
        except Exception as error:  # noqa: BLE001  one cell's failure is no other's
            found = _made_meanwhile(plan)
            failure = None if found else _reason(error)
        yield Outcome(plan=plan, cell=plan.cell(failure=failure), found=found, seconds=time.monotonic() - began)


def _reason(error: Exception) -> str:
    return one_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}"


def _made_meanwhile(plan: CellPlan) -> bool:
    """Whether another process, at work on the same cells, has finished this one."""
    with suppress(UserError):
        return plan.is_finished()
    return False


def _run(plan: CellPlan, watch: Watch) -> None:
    head = plan.head
    if head is not None and not head.is_finished():
        _fit_head(head, watch)
    gc.collect()
    reset_peak_rss()
    if plan.method.kind == "head":
        _fit_head(plan, watch)
        return
    from finetune.comparison.tuned_cell import run_tuned_cell

    run_tuned_cell(plan, on_note=watch.on_note, on_step=watch.on_step)


def _fit_head(plan: CellPlan, watch: Watch) -> None:
    cache = plan.cache
    source = Source(
        paths=(cache.path.resolve(),),
        fingerprints=(cache.fingerprint,),
        subset=plan.subset,
        exclude=plan.place.exclude,
        val_fraction=plan.place.val_fraction,
        seed=plan.seed,
        views="plain",
    )
    piece = HeadPiece(source=source, recipe=plan.recipe, folder=plan.folder.resolve(), command=plan.place.command)
    plan.check_published(fit_and_publish(piece, watch.on_candidate).folder, watch.on_note)
