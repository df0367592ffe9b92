"""A data set and a backbone in, a sealed cache out: every image decoded and run through the trunk once."""

from __future__ import annotations

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

from featcache import layout
from featcache.backbones import Backbone
from featcache.batches import BatchReader
from featcache.builder import CacheBuilder
from featcache.cache import Cache
from featcache.datasets import ImageDataset
from featcache.disk import building
from featcache.errors import CacheError, UserError
from featcache.machine import device_name, full_fp32, versions
from featcache.plan import Plan, PlannedRows

#: Rows that are written together: the smallest multiple of the batch from here on.
MIN_BLOCK_ROWS = 256
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Embedded:
    """What embedding came to.

    Attributes:
        cache: the sealed cache.
        rows: in all its splits.
        rows_reused: of these, the ones that were there before.
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

    @cached_property
    def plan(self) -> Plan:
        """What the cache will hold; every image is read once for its digest."""
        stages = self.backbone.staged.stages
        encoder = self.backbone.encoder(cut=self.cut, precision=self.precision, storage=self.storage)
        splits = {}
        for name, split in self.dataset.splits.items():
            if not split.ids:
                raise UserError(f"{self.dataset.name}: no images left in {name}; choose more, or leave the split out")
            splits[name] = PlannedRows(split.ids, split.labels, split.images.digests())
        return Plan(
            encoder=encoder,
            class_names=self.dataset.class_names,
            splits=splits,
            source={"dataset": self.dataset.name, "selection": self.dataset.selection},
            feature_shape=stages[(self.cut or len(stages)) - 1].shape,
            block_rows=self.batch_size * -(-MIN_BLOCK_ROWS // self.batch_size),
        )

    @property
    def path(self) -> Path:
        """Of the finished cache."""
        return self.cache_dir / self.plan.file_name

    def finished(self) -> Cache | None:
        """The sealed cache of this plan, where there is one."""
        try:
            cache = Cache.open(self.path)
        except CacheError:
            return None
        return cache if cache.fingerprint == self.plan.fingerprint else None

    def run(
        self,
        *,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
        on_wait: Callable[[], None] = lambda: None,
    ) -> Embedded:
        """Embed what is not there yet and seal the cache.

        Args:
            on_progress: called with the rows done and all rows, once for what was there and after every batch.
            on_wait: called once where another process is building the same cache.

        Raises:
            UserError: the folder can't be written, the disk is full, an image changed meanwhile, a feature does not fit
                float16, or, with ``strict``, an image is damaged.
        """
        begun = time.perf_counter()
        rows = len(self.dataset)
        assert self.plan.fingerprint  # reads every image for its digest; part of the time that is told
        cache, embedded = self.finished(), 0
        if cache is None:
            with building(self.path, on_wait=on_wait):
                cache = self.finished()  # another process may have made it meanwhile
                if cache is None:
                    embedded = self._build(rows, on_progress)
                    cache = Cache.open(self.path)
        seconds = time.perf_counter() - begun
        return Embedded(
            cache=cache,
            rows=rows,
            rows_reused=rows - embedded,
            rows_damaged=sum(int((split.status != layout.OK).sum()) for split in cache.splits.values()),
            seconds=round(seconds, 3),
            images_per_s=round(embedded / seconds, 1),
        )

    def _build(self, rows: int, on_progress: Callable[[int, int], None]) -> int:
        begun = time.perf_counter()
        builder = CacheBuilder.create_or_resume(self.path, self.plan, self._provenance())
        try:
            pending = {split: builder.pending(split) for split in self.plan.splits}
            todo = sum(stop - start for blocks in pending.values() for start, stop in blocks)
            on_progress(rows - todo, rows)
            for split, start, features, damaged in self._blocks(pending, lambda n: on_progress(rows - todo + n, rows)):
                self._write(builder, split, start, features, damaged)
            builder.seal(seconds=time.perf_counter() - begun)
        finally:
            builder.close(seconds=time.perf_counter() - begun)
        return todo

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
        }

    def _blocks(
        self, pending: dict[str, list[tuple[int, int]]], on_rows: Callable[[int], None]
    ) -> Iterator[tuple[str, int, NDArray[np.float32], dict[int, str]]]:
        """The split, first row, features and damages of each pending block; ``on_rows`` hears of every batch."""
        trunk = self.backbone.staged.trunk(self.cut).to(self.device)
        parts: list[NDArray[np.float32]] = []
        damaged: dict[int, str] = {}
        done = 0
        ends = {split: {stop for _, stop in blocks} for split, blocks in pending.items()}
        for batch in self._reader(pending).batches(workers=self.workers, pin_memory=self.device.type == "cuda"):
            if batch.changed is not None:
                name = self.plan.splits[batch.split].ids[batch.changed]
                raise UserError(f"{name} changed while it was being embedded; embed again")
            parts.append(self._forward(trunk, batch.images)[: batch.stop - batch.start])
            damaged |= batch.damaged
            done += batch.stop - batch.start
            if batch.stop in ends[batch.split]:
                features = np.concatenate(parts)
                yield batch.split, batch.stop - len(features), features, damaged
                parts, damaged = [], {}
            on_rows(done)

    def _reader(self, pending: dict[str, list[tuple[int, int]]]) -> BatchReader:
        return BatchReader(
            images={split: self.dataset.splits[split].images for split in pending},
            content={split: rows.content for split, rows in self.plan.splits.items()},
            ranges=tuple(
                (split, first, min(first + self.batch_size, stop))
                for split, blocks in pending.items()
                for start, stop in blocks
                for first in range(start, stop, self.batch_size)
            ),
            preprocessing=self.backbone.preprocessing,
        )

    def _forward(self, trunk: torch.nn.Module, images: Tensor) -> NDArray[np.float32]:
        """(n, 1 or 3, S, S) uint8 to (batch_size, …) float32; every pass has the same shape."""
        padding = self.batch_size - len(images)
        if padding:
            images = torch.cat([images, images.new_zeros(padding, *images.shape[1:])])
        images = self.backbone.preprocessing.normalise(images.to(self.device, non_blocking=True))
        dtype = PRECISIONS[self.precision]
        autocast = torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)
        with torch.inference_mode(), full_fp32(), autocast:
            features = trunk(images)
        return features.float().cpu().numpy()

    def _write(
        self, builder: CacheBuilder, split: str, start: int, features: NDArray[np.float32], damaged: dict[int, str]
    ) -> None:
        ids = self.plan.splits[split].ids
        if damaged and self.strict:
            row, message = min(damaged.items())
            raise UserError(f"{ids[row]}: {message}; mend or remove it, or go without --strict")
        status = np.full(len(features), layout.OK, np.uint8)
        flat = features.reshape(len(features), -1)
        status[~np.isfinite(flat).all(axis=1)] = layout.NOT_FINITE
        status[[row - start for row in damaged]] = layout.DAMAGED
        features[status != layout.OK] = 0
        limit = np.finfo(self.storage).max
        if np.abs(features).max() > limit:
            raise UserError(
                f"a feature of {np.abs(features).max():.3g} is beyond {self.storage}: take --storage float32"
            )
        errors = {ids[start + int(row)]: layout.STATUS_NAMES[layout.NOT_FINITE] for row in np.flatnonzero(status == 2)}
        errors |= {ids[row]: message for row, message in damaged.items()}
        builder.write(split, start, features.astype(self.storage), status, errors)
