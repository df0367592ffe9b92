"""Embed a data set with a backbone into a finished cache: every image is decoded and run through the trunk once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featcache.build.builder import CacheBuilder
from featcache.build.plan import Plan, PlannedRows
from featcache.build.preflight import finished_cache, refuse_damaged, refuse_drift, refuse_lack_of_space
from featcache.cache import file_format, pictures
from featcache.cache.cache_file import Cache
from featcache.cache.canary import Canary
from featcache.common import hashing
from featcache.common.errors import UserError
from featcache.common.locks import building
from featcache.common.machine import hardware, versions, working_folder
from featcache.common.ranks import ALONE, Ranks
from featcache.embedding.embed_rows import Filled, fill
from featcache.embedding.forward_passes import TrunkPasses
from featcache.embedding.row_digests import calibration, planned_rows
from featcache.embedding.throughput import Verdict, judge
from featcache.engines import engine_choice, fidelity_gate
from featcache.engines.fidelity_gate import Prepared
from featcache.models.backbones import Backbone
from featcache.sources.augmented_views import Augmentation
from featcache.sources.batches import views
from featcache.sources.decoding import decode
from featcache.sources.image_sets import ImageDataset

Tell = Callable[[str], None]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Embedded:
    """What embedding came to.

    Attributes:
        cache: the sealed cache.
        settled: the work with the engine, precision and batch size that were chosen.
        rows: in all its splits.
        rows_reused: of these, the ones that were there before, in this cache or another.
        rows_damaged: of these, the ones without features.
        seconds: of this call's work.
        images_per_s: of the rows that it embedded, over all of these seconds; 0 where there were none.
        verdict: where the time went; None where nothing was embedded.
    """

    cache: Cache
    settled: Embedding
    rows: int
    rows_reused: int
    rows_damaged: int
    seconds: float
    images_per_s: float
    verdict: Verdict | None


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """The work of embedding one data set with one backbone; ``run`` does it, or finds it done.

    Attributes:
        dataset, backbone: what to embed, and by what.
        cache_dir: the folder of the cache.
        cut: how many leading stages run; None runs them all, up to the input of the last linear layer.
        storage: ``float16`` or ``float32`` in the file.
        engine: ``eager``, ``compile``, ``openvino``, or ``auto``; see ``featcache.engines``.
        precision: ``fp32``, ``bf16``, ``fp16``, ``int8``, or ``auto``: bf16 where the processor has it, else fp32.
        device: a torch device.
        batch_size: images a forward pass, the last batch of a split is padded to it; None leaves it to the device.
        workers: threads that read and decode ahead; 0 does it between forward passes.
        strict: whether a damaged image is an error; otherwise its row is marked and the work goes on.
        augmentation: how augmented views are drawn, which are cached beside the plain one.
        max_gb: the most that the features may take, in units of 10^9 bytes.
        command: how this was asked for, recorded so that an interrupted build can be gone on with.
        ranks: who does it together, joined; each with a device of its own, and all else the same.
        rows: what is known of the images, where they have been read for it already.
        prepared: the engine, where it has been set up already.
        left_open: which of ``engine`` and ``precision`` were ``auto`` before they were settled.
    """

    dataset: ImageDataset
    backbone: Backbone
    cache_dir: Path
    cut: int | None = None
    storage: str = "float16"
    engine: str = "eager"
    precision: str = "fp32"
    device: torch.device
    batch_size: int | None = None
    workers: int = 0
    strict: bool = False
    augmentation: Augmentation | None = None
    max_gb: float | None = None
    command: tuple[str, ...] = ()
    ranks: Ranks = ALONE
    rows: Mapping[str, PlannedRows] | None = None
    prepared: Prepared | None = None
    left_open: tuple[str, ...] = ()

    @cached_property
    def plan(self) -> Plan:
        """What the cache will hold; without ``rows``, every image is read for its digest, by all ranks together."""
        rows = self.rows or planned_rows(self.dataset, self.ranks)
        source = {"dataset": self.dataset.name, "selection": self.dataset.selection}
        return Plan(self.encoder, self.dataset.class_names, rows, source, self.row_shape)

    @cached_property
    def encoder(self) -> dict[str, Any]:
        """How images become features; see ``Backbone.encoder``."""
        assert "auto" not in (self.engine, self.precision)
        ranges = self.precision == "int8" and self.rows
        return self.backbone.encoder(
            cut=self.cut,
            precision=self.precision,
            engine=self.engine,
            storage=self.storage,
            augmentation=self.augmentation,
            calibration=calibration(ranges, batch=self.pass_images) if ranges else None,
        )

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Of one row's features; with views, these come first."""
        stages = self.backbone.staged.stages
        shape = stages[(self.cut or len(stages)) - 1].shape
        return (self.views_per_image, *shape) if self.augmentation else shape

    @property
    def feature_bytes(self) -> int:
        """What the features of all rows take."""
        return file_format.n_bytes(np.dtype(self.storage), (len(self.dataset), *self.row_shape))

    @property
    def views_per_image(self) -> int:
        """The plain one included."""
        return 1 + (self.augmentation.views if self.augmentation else 0)

    @property
    def group_rows(self) -> int:
        """Rows whose views go through the trunk together."""
        return max(1, (self.batch_size or engine_choice.default_batch(self.device)) // self.views_per_image)

    @property
    def pass_images(self) -> int:
        """Views in a forward pass, always the same."""
        return self.group_rows * self.views_per_image

    @cached_property
    def passes(self) -> TrunkPasses:
        """The way through the trunk; its engine is set up now where it has not been before."""
        prepared = self.prepared or fidelity_gate.set_up(self)
        return TrunkPasses(
            forward=prepared.forward,
            device=self.device,
            rows=self.group_rows,
            views=self.views_per_image,
            row_shape=self.row_shape,
            storage=self.storage,
        )

    @property
    def path(self) -> Path:
        """Of the finished cache."""
        return self.cache_dir / self.plan.file_name

    def finished(self) -> Cache | None:
        """The sealed cache of this plan, if there is one; raises CacheError as ``preflight.finished_cache``."""
        return finished_cache(self.path, self.plan)

    def run(
        self,
        *,
        on_progress: Progress = lambda done, total: None,
        on_wait: Tell = lambda holder: None,
        on_note: Tell = lambda note: None,
    ) -> Embedded:
        """Embed what is not there yet and seal the cache.

        Args:
            on_progress: called with the rows done and all rows, once for what was there and after every batch.
            on_wait: called once, with its process id, where another process is building the same cache.
            on_note: called with sentences for the user.

        Raises:
            UserError: the folder can't be written, the disk is full, the features would take more than ``max_gb``, an
                image changed meanwhile, a feature does not fit float16, the engine can't be had or is not faithful, the
                GPU has too little memory, or, with ``strict``, an image is damaged.
            CacheError: there is such a cache, but today's stack makes other features (see ``featcache.cache.canary``);
                or a file of its name may be sound, but can't be opened.
        """
        begun = time.perf_counter()
        if self.ranks.is_first:
            refuse_lack_of_space(self.cache_dir, len(self.dataset), self.row_shape, self.storage, self.max_gb)
        work = replace(self, rows=self.rows or planned_rows(self.dataset, self.ranks))
        while True:
            settled = work
            try:
                settled = engine_choice.settle_together(work, on_note=on_note)
                return settled._embedded(begun, on_progress, on_wait, on_note)
            except torch.cuda.OutOfMemoryError as error:
                size = settled.pass_images
                if settled.group_rows == 1 or not self.ranks.is_alone:
                    mend = "take a smaller --batch-size, fewer --views or a smaller --image-size"
                    raise UserError(f"{self.device} has too little memory for batches of {size}: {mend}") from error
            on_note(f"{self.device} has too little memory for batches of {size}: beginning again with {size // 2}")
            work = replace(work, batch_size=size // 2)
            torch.cuda.empty_cache()

    def _embedded(self, begun: float, on_progress: Progress, on_wait: Tell, on_note: Tell) -> Embedded:
        filled = Filled()
        with ExitStack() as held:
            if not self._is_finished():
                if self.ranks.is_first:
                    held.enter_context(building(self.path, on_wait=on_wait))
                if not self._is_finished():  # another process may have made it meanwhile
                    filled = self._built(on_progress, on_wait, on_note)
        told = self.ranks.share(self._told(filled, begun) if self.ranks.is_first else None)
        verdict = told.pop("verdict")
        return Embedded(cache=Cache.open(self.path), settled=self, verdict=verdict and Verdict(**verdict), **told)

    def _is_finished(self) -> bool:
        """Whether there is a sealed cache; by what the first rank sees, so that all go the same way."""
        return bool(self.ranks.share(self.ranks.is_first and self.finished() is not None))

    def _told(self, filled: Filled, begun: float) -> dict[str, Any]:
        """Check the sealed cache, and tell what is to be told of the work beside it."""
        cache, rows = Cache.open(self.path), len(self.dataset)
        if not filled.embedded:
            precision = "fp32" if self.precision == "int8" else self.precision
            refuse_drift(cache, replace(self, engine="eager", precision=precision, prepared=None).canary())
        if self.strict:
            refuse_damaged(cache)
        seconds = time.perf_counter() - begun
        verdict = judge(self, filled)
        return {
            "rows": rows,
            "rows_reused": rows - filled.embedded,
            "rows_damaged": sum(int((split.status != file_format.OK).sum()) for split in cache.splits.values()),
            "seconds": round(seconds, 3),
            "images_per_s": round(filled.embedded / seconds, 1),
            "verdict": verdict and verdict.to_json(),
        }

    def canary(self) -> Canary:
        """What this stack makes of the pictures that ship with the package."""
        read = pictures.read()
        digests = np.stack([np.frombuffer(hashing.digest(data), np.uint8) for data in read])
        images = views([decode(data) for data in read], digests, self.backbone.preprocessing, self.augmentation)
        starts = range(0, len(images), self.group_rows)
        features = np.concatenate([self.passes.features(images[i : i + self.group_rows]) for i in starts])
        pixels = np.stack([np.frombuffer(hashing.digest(image.numpy()), np.uint8) for image in images.contiguous()])
        return Canary(pictures.names(), self.passes.stored(features), pixels)

    def _built(self, on_progress: Progress, on_wait: Tell, on_note: Tell) -> Filled:
        """Build the cache; gives what all ranks did, with the times of this one."""
        begun = time.perf_counter() - (self.prepared.setup_s if self.prepared else 0)
        builder = CacheBuilder.create_or_resume(
            self.path, self.plan, self._provenance(), self.canary(), ranks=self.ranks, on_wait=on_wait
        )
        try:
            for note in (builder.note, *builder.known.drifted):
                if note:
                    on_note(note)
            filled = fill(builder, self, on_progress)
            embedded = sum(self.ranks.gather(filled.embedded))
            if self.ranks.is_first:
                builder.seal(seconds=time.perf_counter() - begun)
        finally:
            builder.close(seconds=time.perf_counter() - begun)
        return replace(filled, embedded=embedded)

    def _provenance(self) -> dict[str, Any]:
        return {
            "fingerprint": self.plan.fingerprint,
            "source": {**self.plan.source, "folder": self.dataset.folder, "notes": list(self.dataset.notes)},
            "weights": self.backbone.weights["name"],
            "batch": self.batch_size,
            "threads": torch.get_num_threads(),
            "engine": self.prepared.to_json() if self.prepared else {},
            "hardware": hardware(self.device, self.ranks),
            "versions": versions(),
            "trunk_parameters": sum(stage.n_parameters for stage in self.backbone.staged.stages[: self.cut]),
            "command": list(self.command),
            "working_folder": working_folder(),
        }
