"""What was chosen to run once in, with the rows and their images; the same rows with their maps out, cached by then."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from featcache.build.plan import PlannedRows
from featcache.cache.cache_file import Cache
from featcache.common.ranks import ALONE, Ranks
from featcache.embedding.job import Embedding
from featcache.models.backbones import Backbone
from featcache.sources.image_sets import ImageDataset, Images, ReadImages, Split
from finetune.cached_rows import TuningRows
from finetune.image_source import ImageSource
from finetune.map_source import MapSource
from finetune.plans import Plan
from finetune.settings import Settings
from finetune.sources import Labels
from finetune.trunk_choice import TrunkOption
from finetune.trunk_matches import held_rows, split_of


@dataclass(frozen=True, eq=False, kw_only=True)
class TrunkCached:
    """Rows whose frozen stages have run.

    Attributes:
        rows: each source gives maps to phases whose cut allows it, and images to others.
        cache: of the maps.
        option: what was chosen.
        seconds: that embedding took now.
    """

    rows: TuningRows
    cache: Cache
    option: TrunkOption
    seconds: float

    def told(self, plan: Plan) -> str:
        """What trains from the cache, in a sentence."""
        made = f"made in {self.seconds:.1f} s" if self.seconds else "there already"
        epochs = "all epochs" if self.option.epochs == plan.epochs else f"the first {self.option.epochs} epochs"
        views = f"; {self.option.n_views - 1} cached views stand for augmentation" if self.option.n_views > 1 else ""
        return f"{epochs} train from {self.cache.path.name}, the maps of {self.option.stage} ({made}){views}"

    def augment(self, settings: Settings, plan: Plan) -> str:
        """What training batches went through, in words: cached views stood for augmentation where epochs had them."""
        if self.option.n_views == 1:
            return settings.augment
        views = f"{self.option.n_views - 1} cached views"
        return views if self.option.epochs == plan.epochs else f"{views}, then {settings.augment}"

    def to_json(self) -> dict[str, Any]:
        """As ``run.json`` tells it."""
        return {
            "file": self.cache.path.name,
            "fingerprint": self.cache.fingerprint,
            "cut": self.option.stage,
            "storage": self.cache.encoder["storage"],
            "engine": self.cache.encoder["engine"],
            "n_views": self.option.n_views,
            "epochs": self.option.epochs,
            "bytes": self.cache.n_bytes,
            "embed_s": self.seconds,
        }


def with_trunk_cache(
    option: TrunkOption,
    *,
    cache: Cache,
    folder: Path,
    backbone: Backbone,
    rows: TuningRows,
    settings: Settings,
    device: torch.device,
    ranks: Ranks = ALONE,
    command: Sequence[str] = (),
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> TrunkCached:
    """Embed the rows up to the chosen stage where that is not done yet, and serve their maps.

    Batches are of the size of those that train, so that in fp32 the maps have the bits that training would compute.

    Args:
        option: what was chosen.
        cache: that the rows were chosen from.
        folder: where a new cache goes.
        backbone: with the weights of ``cache``.
        rows: with their images.
        settings: tell the precision and the size of batches.
        device: where to compute.
        ranks: that embed together.
        command: recorded in a new cache.
        on_progress: called with the rows done and all rows.
        on_note: called with sentences for the user.

    Raises:
        UserError: as embedding does: no space, an image that changed, a value beyond float16.
    """
    found, seconds = option.found, 0.0
    if found is None:
        n_views = 1 + (option.augmentation.views if option.augmentation else 0)
        dataset, planned = _dataset(cache, rows)
        embedded = Embedding(
            dataset=dataset,
            rows=planned,
            backbone=backbone,
            cache_dir=folder,
            cut=option.cut,
            storage=option.storage,
            engine="eager",
            precision=settings.precision,
            device=device,
            batch_size=settings.batch_size * n_views,
            workers=rows.train.pictures.workers,
            strict=True,
            augmentation=option.augmentation,
            command=tuple(command),
            ranks=ranks,
        ).run(on_progress=on_progress, on_note=on_note)
        found, seconds = embedded.cache, embedded.seconds
    held = held_rows(found, cache, rows.rows)
    assert held is not None

    def served(part: str, source: ImageSource) -> ImageSource:
        maps = MapSource(
            parts=(held[part],),
            labels=source.labels,
            cut=option.cut,
            n_views=option.n_views,
            order=option.order,
            device=device,
        )
        return replace(source, maps=maps)

    all_served = replace(
        rows, train=served("train", rows.train), val=served("val", rows.val), test=served("test", rows.test)
    )
    return TrunkCached(rows=all_served, cache=found, option=option, seconds=seconds)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Gathered:
    """The images of rows that lie in several splits of a data set; ``splits`` and ``rows`` say where (N,)."""

    images: Mapping[str, Images]
    splits: Sequence[str]
    rows: Labels
    content: NDArray[np.uint8] = field(repr=False)
    in_memory: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: Labels) -> _Gathered:
        splits = [self.splits[row] for row in rows.tolist()]
        return _Gathered(images=self.images, splits=splits, rows=self.rows[rows], content=self.content[rows])

    def digests(self) -> NDArray[np.uint8]:
        return self.content

    def read(self, rows: Sequence[int]) -> ReadImages:
        each = [self.images[self.splits[row]].read([int(self.rows[row])]) for row in rows]
        damaged = {i: read.damaged[0] for i, read in enumerate(each) if read.damaged}
        return ReadImages([read.pixels[0] for read in each], np.concatenate([read.digests for read in each]), damaged)


def _dataset(cache: Cache, rows: TuningRows) -> tuple[ImageDataset, dict[str, PlannedRows]]:
    """The rows as a data set of their own, in the order and with the labels of the cache that they came from."""
    sources: dict[str, list[tuple[tuple[str, ...], ImageSource]]] = {}
    for part in ("train", "val", "test"):
        told = (getattr(rows.rows, part).ids, getattr(rows, part))
        sources.setdefault(split_of(part, rows.rows), []).append(told)
    splits, planned = {}, {}
    for name, parts in sources.items():
        held = cache.splits[name]
        at = {row_id: row for row, row_id in enumerate(held.ids)}
        numbers = np.array([at[row_id] for ids, _ in parts for row_id in ids], np.int64)
        order = np.argsort(numbers)
        numbers = numbers[order]
        where = [split for _, source in parts for split in source.splits]
        located = np.concatenate([source.rows for _, source in parts])[order]
        content = held.content[numbers]
        pictures = parts[0][1].pictures
        home = {where[i] for i in order.tolist()}
        images: Images = (
            pictures.images[home.pop()].take(located)
            if len(home) == 1
            else _Gathered(
                images=pictures.images, splits=[where[i] for i in order.tolist()], rows=located, content=content
            )
        )
        ids = tuple(held.ids[row] for row in numbers.tolist())
        splits[name] = Split(ids, held.labels[numbers], images)
        planned[name] = PlannedRows(ids, held.labels[numbers], content)
    told_source = cache.provenance["source"]
    dataset = ImageDataset(
        cache.dataset,
        cache.class_names,
        {name: splits[name] for name in cache.splits if name in splits},
        selection=told_source["selection"],
        folder=told_source.get("folder"),
    )
    return dataset, {name: planned[name] for name in dataset.splits}
