"""A data set and a backbone in, a sealed cache out: every image decoded and run through the trunk once."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featcache import layout, pictures
from featcache.augmentation import Augmentation
from featcache.backbones import Backbone
from featcache.batches import Batch, BatchReader, views
from featcache.builder import CacheBuilder
from featcache.cache import Cache
from featcache.canary import Canary
from featcache.datasets import ImageDataset
from featcache.errors import CacheError, UserError
from featcache.images import decode
from featcache.locks import building
from featcache.machine import device_name, full_fp32, versions
from featcache.plan import Plan, PlannedRows
from featcache.safeguards import refuse_damaged, refuse_drift, refuse_lack_of_space

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Embedded:
    """What embedding came to.

    Attributes:
        cache: the sealed cache.
        rows: in all its splits.
        rows_reused: of these, the ones that were there before, in this cache or another.
        rows_damaged: of these, the ones without features.
        seconds: of this call's work.
        images_per_s: of the rows that it embedded; 0 where there were none.
    """

    cache: Cache
    rows: int
    rows_reused: int
    rows_damaged: int
    seconds: float
    images_per_s: float


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """The work of embedding one data set with one backbone; ``run`` does it, or finds it done.

    Attributes:
        dataset, backbone: what to embed, and by what.
        cache_dir: the folder of the cache.
        cut: how many leading stages run; None runs them all, up to the input of the last linear layer.
        storage: ``float16`` or ``float32`` in the file.
        precision: ``fp32``, or ``bf16`` or ``fp16`` by autocast.
        device: a torch device.
        batch_size: images a forward pass; the last batch of a split is padded to it.
        workers: processes that decode; 0 decodes in this one.
        strict: whether a damaged image is an error; otherwise its row is marked and the work goes on.
        augmentation: how augmented views are drawn, which are cached beside the plain one.
        max_gb: the most that the features may take, in units of 10^9 bytes.
        command: how this was asked for, recorded so that an interrupted build can be gone on with.
    """

    dataset: ImageDataset
    backbone: Backbone
    cache_dir: Path
    cut: int | None = None
    storage: str = "float16"
    precision: str = "fp32"
    device: torch.device
    batch_size: int = 64
    workers: int = 0
    strict: bool = False
    augmentation: Augmentation | None = None
    max_gb: float | None = None
    command: tuple[str, ...] = ()

    @cached_property
    def plan(self) -> Plan:
        """What the cache will hold; every image is read once for its digest."""
        splits = {}
        for name, split in self.dataset.splits.items():
            if not split.ids:
                raise UserError(f"{self.dataset.name}: no images left in {name}; choose more, or leave the split out")
            splits[name] = PlannedRows(split.ids, split.labels, split.images.digests())
        return Plan(
            encoder=self.encoder,
            class_names=self.dataset.class_names,
            splits=splits,
            source={"dataset": self.dataset.name, "selection": self.dataset.selection},
            feature_shape=self.row_shape,
        )

    @cached_property
    def encoder(self) -> dict[str, Any]:
        """How images become features; see ``Backbone.encoder``."""
        return self.backbone.encoder(
            cut=self.cut, precision=self.precision, storage=self.storage, augmentation=self.augmentation
        )

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Of one row's features; with views, these come first."""
        stages = self.backbone.staged.stages
        shape = stages[(self.cut or len(stages)) - 1].shape
        return (self._n_views, *shape) if self.augmentation else shape

    @property
    def feature_bytes(self) -> int:
        """What the features of all rows take."""
        return layout.n_bytes(np.dtype(self.storage), (len(self.dataset), *self.row_shape))

    @property
    def _n_views(self) -> int:
        return 1 + (self.augmentation.views if self.augmentation else 0)

    @property
    def _group_rows(self) -> int:
        """Rows whose views go through the trunk together."""
        return max(1, self.batch_size // self._n_views)

    @property
    def path(self) -> Path:
        """Of the finished cache."""
        return self.cache_dir / self.plan.file_name

    def finished(self) -> Cache | None:
        """The sealed cache of this plan, where there is one."""
        try:
            cache = Cache.open(self.path)
            return cache if cache.fingerprint == self.plan.fingerprint and self.plan.describes(cache) else None
        except CacheError:
            return None

    def run(
        self,
        *,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
        on_wait: Callable[[str], None] = lambda holder: None,
        on_note: Callable[[str], None] = lambda note: None,
    ) -> Embedded:
        """Embed what is not there yet and seal the cache.

        Args:
            on_progress: called with the rows done and all rows, once for what was there and after every batch.
            on_wait: called once, with its process id, where another process is building the same cache.
            on_note: called with sentences for the user.

        Raises:
            UserError: the folder can't be written, the disk is full, the features would take more than ``max_gb``, an
                image changed meanwhile, a feature does not fit float16, or, with ``strict``, an image is damaged.
            CacheError: there is such a cache, but today's stack makes other features (see ``featcache.canary``).
        """
        begun = time.perf_counter()
        rows = len(self.dataset)
        refuse_lack_of_space(self.cache_dir, rows, self.row_shape, self.storage, self.max_gb)
        assert self.plan.fingerprint  # reads every image for its digest; part of the time that is told
        cache, embedded = self.finished(), 0
        if cache is None:
            with building(self.path, on_wait=on_wait):
                cache = self.finished()  # another process may have made it meanwhile
                if cache is None:
                    embedded = self._build(rows, on_progress, on_note)
                    cache = Cache.open(self.path)
        if not embedded:
            refuse_drift(cache, self.canary())
        if self.strict:
            refuse_damaged(cache)
        seconds = time.perf_counter() - begun
        return Embedded(
            cache=cache,
            rows=rows,
            rows_reused=rows - embedded,
            rows_damaged=sum(int((split.status != layout.OK).sum()) for split in cache.splits.values()),
            seconds=round(seconds, 3),
            images_per_s=round(embedded / seconds, 1),
        )

    def canary(self) -> Canary:
        """What this stack makes of the pictures that ship with the package."""
        read = pictures.read()
        digests = np.stack([np.frombuffer(layout.digest(data), np.uint8) for data in read])
        images = views([decode(data) for data in read], digests, self.backbone.preprocessing, self.augmentation)
        trunk = self.backbone.staged.trunk(self.cut).to(self.device)
        starts = range(0, len(images), self._group_rows)
        features = np.concatenate([self._forward(trunk, images[i : i + self._group_rows]) for i in starts])
        pixels = np.stack([np.frombuffer(layout.digest(image.numpy()), np.uint8) for image in images.contiguous()])
        return Canary(pictures.names(), self._fitting(features), pixels)

    def _build(self, rows: int, on_progress: Callable[[int, int], None], on_note: Callable[[str], None]) -> int:
        begun = time.perf_counter()
        builder = CacheBuilder.create_or_resume(self.path, self.plan, self._provenance(), self.canary())
        embedded = 0
        try:
            for note in (builder.note, *builder.known.drifted):
                if note:
                    on_note(note)
            while builder.look():
                on_progress(builder.done, rows)
                for _ in builder.copy():
                    on_progress(builder.done, rows)
                for batch, features in self._embedded(builder.groups(self._group_rows)):
                    embedded += self._put(builder, batch, features)
                    on_progress(builder.done, rows)
            builder.seal(seconds=time.perf_counter() - begun)
        finally:
            builder.close(seconds=time.perf_counter() - begun)
        return embedded

    def _provenance(self) -> dict[str, Any]:
        return {
            "fingerprint": self.plan.fingerprint,
            "source": {**self.plan.source, "folder": self.dataset.folder, "notes": list(self.dataset.notes)},
            "weights": self.backbone.weights["name"],
            "batch": self.batch_size,
            "threads": torch.get_num_threads(),
            "hardware": {"machine": platform.machine(), "device": str(self.device), "name": device_name(self.device)},
            "versions": versions(),
            "trunk_parameters": sum(stage.n_parameters for stage in self.backbone.staged.stages[: self.cut]),
            "command": list(self.command),
            "working_folder": _working_folder(),
        }

    def _embedded(self, groups: list[tuple[str, NDArray[np.int64]]]) -> Iterator[tuple[Batch, NDArray[np.float32]]]:
        """Each group as read, and its features."""
        trunk = self.backbone.staged.trunk(self.cut).to(self.device)
        reader = BatchReader(
            images={name: split.images for name, split in self.dataset.splits.items()},
            content={name: rows.content for name, rows in self.plan.splits.items()},
            groups=groups,
            preprocessing=self.backbone.preprocessing,
            augmentation=self.augmentation,
        )
        for batch in reader.batches(workers=self.workers, pin_memory=self.device.type == "cuda"):
            if batch.changed is not None:
                name = self.plan.splits[batch.split].ids[batch.changed]
                raise UserError(f"{name} changed while it was being embedded; embed again")
            yield batch, self._forward(trunk, batch.images)

    def _forward(self, trunk: torch.nn.Module, images: Tensor) -> NDArray[np.float32]:
        """(n, V, 1 or 3, S, S) uint8 to (n, *row_shape) float32; every pass has the same shape."""
        n_rows = len(images)
        images = images.flatten(0, 1)
        padding = self._group_rows * self._n_views - len(images)
        if padding:
            images = torch.cat([images, images.new_zeros(padding, *images.shape[1:])])
        images = self.backbone.preprocessing.normalise(images.to(self.device, non_blocking=True))
        dtype = PRECISIONS[self.precision]
        autocast = torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)
        with torch.inference_mode(), full_fp32(), autocast:
            features = trunk(images)
        shape = (self._group_rows, *self.row_shape)
        return features.float().cpu().numpy().reshape(shape)[:n_rows]

    def _put(self, builder: CacheBuilder, batch: Batch, features: NDArray[np.float32]) -> int:
        ids = [self.plan.splits[batch.split].ids[row] for row in batch.rows.tolist()]
        if batch.damaged and self.strict:
            position, message = min(batch.damaged.items())
            raise UserError(f"{ids[position]}: {message}; mend or remove it, or go without --strict")
        status = np.full(len(features), layout.OK, np.uint8)
        flat = features.reshape(len(features), -1)
        status[~np.isfinite(flat).all(axis=1)] = layout.NOT_FINITE
        status[list(batch.damaged)] = layout.DAMAGED
        features[status != layout.OK] = 0
        not_finite = np.flatnonzero(status == layout.NOT_FINITE).tolist()
        errors = {ids[position]: layout.STATUS_NAMES[layout.NOT_FINITE] for position in not_finite}
        errors |= {ids[position]: message for position, message in batch.damaged.items()}
        return builder.put(batch.split, batch.rows, self._fitting(features), status, errors)

    def _fitting(self, features: NDArray[np.float32]) -> NDArray[Any]:
        """Features in the type that the cache stores."""
        largest = np.abs(features, where=np.isfinite(features), out=np.zeros_like(features)).max()
        if largest > np.finfo(self.storage).max:
            raise UserError(f"a feature of {largest:.3g} is beyond {self.storage}: take --storage float32")
        return features.astype(self.storage)


def _working_folder() -> str:
    try:
        return os.fsencode(Path.cwd()).decode(errors="replace")
    except FileNotFoundError:  # it was deleted
        return ""
