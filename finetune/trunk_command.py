"""The flags of ``bin/finetune`` on the trunk cache in; the rows with cached maps, where they are to be had, out."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING

from featcache.command_line import Console
from featcache.errors import UserError

if TYPE_CHECKING:
    import torch

    from featcache.backbones import Backbone
    from featcache.cache import Cache
    from finetune.cached_rows import TuningRows
    from finetune.plans import Plan
    from finetune.settings import Settings
    from finetune.trunk_cache import TrunkCached
    from finetune.trunk_choice import TrunkChoice, TrunkOption
    from heads.rows import Rows


def trunk_choice_of(
    arguments: argparse.Namespace,
    cache: Cache,
    rows: Rows,
    backbone: Backbone,
    plan: Plan,
    settings: Settings,
    device: torch.device,
    *,
    refit: bool,
    fingerprint: Callable[[TrunkOption | None], str],
) -> TrunkChoice:
    """What the flags come to. Raises UsageError where they ask for what can't be."""
    from finetune.trunk_choice import choose_trunk
    from finetune.unfinished import is_unfinished

    return choose_trunk(
        arguments.trunk_cache,
        cache=cache,
        folder=arguments.cache_dir,
        backbone=backbone,
        plan=plan,
        settings=settings,
        rows=rows,
        views=arguments.views,
        storage=arguments.storage,
        device=device,
        refit=refit,
        began=lambda option: arguments.resume and is_unfinished(arguments.runs_dir, fingerprint(option)),
    )


def trunk_cached(
    arguments: argparse.Namespace,
    console: Console,
    command: str,
    option: TrunkOption,
    cache: Cache,
    rows: TuningRows,
    backbone: Backbone,
    settings: Settings,
    device: torch.device,
) -> TrunkCached | None:
    """The rows with the maps of their frozen stages; None where they can't be had and were not asked for."""
    from finetune.trunk_cache import with_trunk_cache

    try:
        with console.progress("running frozen stages", "images") as progress:
            return with_trunk_cache(
                option,
                cache=cache,
                folder=arguments.cache_dir,
                backbone=backbone,
                rows=rows,
                settings=settings,
                device=device,
                command=shlex.split(command),
                on_progress=progress,
                on_note=console.note,
            )
    except UserError as error:
        if arguments.trunk_cache == "on" or arguments.views:
            raise
        console.note(f"trunk cache off after all: {error}")
        return None
