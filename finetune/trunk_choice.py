"""A plan, rows and the caches that are there in; whether frozen stages run once into a cache, and why, out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from featcache.cache import file_format
from featcache.cache.cache_file import Cache
from featcache.common.errors import UsageError
from featcache.common.ranks import ALONE, Ranks
from featcache.models.backbones import Backbone
from featcache.sources.augmented_views import Augmentation
from finetune.plans import Plan
from finetune.settings import Settings
from finetune.trunk_cost import TrunkCost, trunk_costs
from finetune.trunk_matches import matching_caches, n_views_of
from heads.rows import Rows

Asked = Literal["auto", "on", "off"]

#: What a cache must save to be worth it, one that is there and one that is to be built, in seconds.
OPENING_S, BUILDING_S = 2.0, 5.0
#: The most that maps may take unasked: of what is free on the disk, and in bytes.
DISK_SHARE, MAX_BYTES = 0.5, 20_000_000_000


@dataclass(frozen=True, eq=False, kw_only=True)
class TrunkOption:
    """One way to run frozen stages once.

    Attributes:
        cut: how many stages.
        stage: the name of the last of them.
        found: a cache that holds the rows already; None where one is to be built.
        augmentation: of the views in a cache to be built.
        n_views: that a row has, the plain one included, as far as they are used.
        storage: of the maps.
        order: of their dimensions in memory (see `finetune.map_source.MapSource`).
        encoder: JSON of the cache's encoder.
        epochs: of the plan that train from it.
        n_bytes: that are to be written.
        saved_s: seconds that it saves, as estimated; below 0 it costs more.
    """

    cut: int
    stage: str
    found: Cache | None
    augmentation: Augmentation | None
    n_views: int
    storage: str
    order: tuple[int, ...]
    encoder: dict[str, Any]
    epochs: int
    n_bytes: int
    saved_s: float

    def to_json(self) -> dict[str, Any]:
        """What of it decides the result."""
        return {"encoder": self.encoder, "n_views": self.n_views}


@dataclass(frozen=True, eq=False, kw_only=True)
class TrunkChoice:
    """What was decided: an option or None, and a sentence on why."""

    option: TrunkOption | None
    why: str


def choose_trunk(
    asked: Asked,
    *,
    cache: Cache,
    folder: Path,
    backbone: Backbone,
    plan: Plan,
    settings: Settings,
    rows: Rows,
    views: int,
    storage: str | None,
    device: torch.device,
    refit: bool,
    ranks: Ranks = ALONE,
    began: Callable[[TrunkOption | None], bool] = lambda option: False,
) -> TrunkChoice:
    """Decide whether frozen stages run once, up to which, and from which cache the rest trains.

    Args:
        asked: ``off`` never, ``on`` where it can be, ``auto`` where it saves seconds and the disk has room.
        cache: that the rows were chosen from.
        folder: of the caches.
        backbone, plan, settings, rows: what is to be trained, and on what.
        views: augmented views an image that are to stand for augmentation; with 0, those of a cache that is there do
            where ``on`` is asked for.
        storage: ``float16`` or ``float32``; None takes what is there, and float16 where nothing is.
        device: where to compute.
        refit: whether a second training follows.
        ranks: that train together; what the first measures decides for all.
        began: whether an unfinished training with this option is to be gone on with.

    Raises:
        UsageError: ``on``, or views, where it cannot be; or views with ``off``.
    """
    if asked == "off":
        if views:
            raise UsageError(f"--views {views} and --trunk-cache off exclude one another: views are had from a cache")
        return TrunkChoice(option=None, why="trunk cache off")
    frozen = sorted({plan.cut(phase) for phase in plan.phases} - {0})
    reason = _no_way(plan, settings, frozen, backbone)
    changes_pixels = settings.augment != "none" and not views
    if changes_pixels and asked == "auto" and not reason:  # views that happen to be there were not asked for
        reason = _told_augment(settings)
    options: list[TrunkOption] = []
    if not reason:
        augmentation = Augmentation(views=views, seed=settings.seed) if views else None
        matching = matching_caches(
            cache,
            folder,
            backbone,
            rows,
            precision=settings.precision,
            storage=storage,
            augmentation=augmentation,
            needs_views=changes_pixels,
        )
        ends = [backbone.staged.cut_after(found.encoder["cut"]) for found in matching]
        side = backbone.preprocessing.image_size
        costs = trunk_costs(backbone.staged, [*frozen, *ends], side=side, settings=settings, device=device, ranks=ranks)
        weigh = _Weighing(backbone=backbone, plan=plan, rows=rows, refit=refit, costs=costs)
        for found, cut in zip(matching, ends, strict=True):
            if cut <= frozen[-1]:
                n_views = 1 + views if views else n_views_of(found) if changes_pixels else 1
                options.append(weigh.option(cut, found=found, n_views=n_views, encoder=found.encoder))
        for cut in [] if changes_pixels else frozen:
            encoder = backbone.encoder(
                cut=cut, precision=settings.precision, storage=storage or "float16", augmentation=augmentation
            )
            options.append(weigh.option(cut, n_views=1 + views, encoder=encoder, augmentation=augmentation))
        reason = "" if options else _told_augment(settings)
    if reason:
        if asked == "on" or views:
            raise UsageError(f"{f'--views {views}' if asked != 'on' else '--trunk-cache on'}: {reason}")
        return TrunkChoice(option=None, why=f"trunk cache off: {reason}")
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    free = ranks.share(shutil.disk_usage(there).free)
    return _chosen("on" if views else asked, options, free, plan, began)


def _told_augment(settings: Settings) -> str:
    return f"--augment {settings.augment} changes pixels anew in every epoch: --views K caches views instead"


def _no_way(plan: Plan, settings: Settings, frozen: Sequence[int], backbone: Backbone) -> str:
    """Why no stage could run once, or nothing."""
    if not frozen:
        inner = f"; {backbone.name} offers no inner cut: {backbone.staged.reason}" if backbone.staged.reason else ""
        return f"the first stage ({plan.stages[0]}) trains from the start, so that none can run once{inner}"
    if settings.mix != "none":
        return f"--mix {settings.mix} changes pixels anew in every epoch"
    return ""


def _chosen(
    asked: Asked,
    options: Sequence[TrunkOption],
    free: int,
    plan: Plan,
    began: Callable[[TrunkOption | None], bool],
) -> TrunkChoice:
    room = [option for option in options if option.n_bytes <= min(DISK_SHARE * free, MAX_BYTES)]
    best = max(room or options, key=lambda option: option.saved_s)
    told = _told(best, plan, free)
    if asked == "on":
        best = next(filter(began, options), best)
        return TrunkChoice(option=best, why=f"trunk cache on: {_told(best, plan, free)}")
    for option in (*options, None):
        if began(option):
            state = "off" if option is None else "on"
            return TrunkChoice(option=option, why=f"trunk cache {state}, as the training was begun")
    if not room:
        return TrunkChoice(option=None, why=f"trunk cache off: {told}, more than half of it or than 20 GB")
    if best.saved_s <= 0:
        return TrunkChoice(option=None, why=f"trunk cache off: {told}")
    return TrunkChoice(option=best, why=f"trunk cache on: {told}")


def _told(option: TrunkOption, plan: Plan, free: int) -> str:
    where = f"the maps of {option.stage}"
    if option.found is not None:
        bytes_told = f"{where} are in {option.found.path.name}"
    else:
        bytes_told = f"{where} would take {option.n_bytes:,} bytes ({free:,} are free)"
    views = f", {option.n_views} views an image" if option.n_views > 1 else ""
    saves = f"save about {option.saved_s:,.0f} s" if option.saved_s > 0 else f"cost about {-option.saved_s:,.0f} s more"
    return f"{bytes_told}{views}; over {option.epochs} of {plan.epochs} epochs they {saves}"


@dataclass(frozen=True, eq=False, kw_only=True)
class _Weighing:
    """What options are weighed by."""

    backbone: Backbone
    plan: Plan
    rows: Rows
    refit: bool
    costs: Mapping[int, TrunkCost]

    def option(
        self,
        cut: int,
        *,
        n_views: int,
        encoder: dict[str, Any],
        found: Cache | None = None,
        augmentation: Augmentation | None = None,
    ) -> TrunkOption:
        rows, cost = self.rows, self.costs[cut]
        epochs = sum(phase.epochs for phase in self.plan.phases if self.plan.cut(phase) >= cut)
        n_dev, n_test = len(rows.train) + len(rows.val), len(rows.test)
        passed = epochs * n_dev * (2 if self.refit else 1)
        if epochs == self.plan.epochs:  # what is scored at the end
            passed += n_test + (n_dev if self.refit else len(rows.train))
        saved_s, n_bytes = passed * cost.seconds - OPENING_S, 0
        if found is None:
            embedded = (n_dev + n_test) * n_views
            shape = self.backbone.staged.stages[cut - 1].shape
            n_bytes = file_format.n_bytes(np.dtype(encoder["storage"]), (embedded, *shape))
            saved_s -= embedded * cost.seconds + BUILDING_S
        return TrunkOption(
            cut=cut,
            stage=self.plan.stages[cut - 1],
            found=found,
            augmentation=augmentation,
            n_views=n_views,
            storage=encoder["storage"],
            order=cost.order,
            encoder=encoder,
            epochs=epochs,
            n_bytes=n_bytes,
            saved_s=saved_s,
        )
