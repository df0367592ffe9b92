"""The flags of ``bin/finetune`` on the trunk cache in; the rows with cached maps, where they are to be had, out."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from featcache.common.errors import UserError

if TYPE_CHECKING:
    from finetune.cached_rows import TuningRows
    from finetune.job_command import Job
    from finetune.trunk_cache import TrunkCached
    from finetune.trunk_choice import TrunkChoice, TrunkOption


def trunk_choice_of(job: Job) -> TrunkChoice:
    """What the flags come to. Raises UsageError where they ask for what can't be."""
    from finetune.trunk_choice import choose_trunk
    from finetune.unfinished import is_unfinished

    arguments = job.arguments
    return choose_trunk(
        arguments.trunk_cache,
        cache=job.cache,
        folder=arguments.cache_dir,
        backbone=job.backbone,
        plan=job.plan,
        settings=job.settings,
        rows=job.rows,
        views=arguments.views,
        storage=arguments.storage,
        device=job.device,
        refit=job.refit,
        ranks=job.ranks,
        began=lambda option: arguments.resume and is_unfinished(arguments.runs_dir, job.fingerprint(option)),
    )


def trunk_cached(job: Job, option: TrunkOption, rows: TuningRows) -> TrunkCached | None:
    """The rows with the maps of their frozen stages; None where they can't be had and were not asked for."""
    from finetune.trunk_cache import with_trunk_cache

    try:
        with job.console.progress("running frozen stages", "images") as progress:
            return with_trunk_cache(
                option,
                cache=job.cache,
                folder=job.arguments.cache_dir,
                backbone=job.backbone,
                rows=rows,
                settings=job.settings,
                device=job.device,
                ranks=job.ranks,
                command=shlex.split(job.command),
                on_progress=progress,
                on_note=job.console.note,
            )
    except UserError as error:
        if job.arguments.trunk_cache == "on" or job.arguments.views or not job.ranks.is_alone:
            raise
        job.console.note(f"trunk cache off after all: {error}")
        return None
