"""Embed and write the missing rows of an unfinished file, and time each step."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featcache.build.builder import CacheBuilder
from featcache.cache import file_format
from featcache.common.errors import UserError
from featcache.sources.batches import Batch, BatchReader

if TYPE_CHECKING:
    from featcache.embedding.job import Embedding


@dataclass
class Filled:
    """What filling a file came to, on this rank.

    Attributes:
        embedded: rows.
        seconds: by step, as in ``featcache.embedding.throughput``; those of threads side by side are added up.
        elapsed: seconds from the first batch to the last.
        waited: of these, the seconds without a batch for the forward pass.
    """

    embedded: int = 0
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    elapsed: float = 0.0
    waited: float = 0.0


def fill(builder: CacheBuilder, work: Embedding, on_progress: Callable[[int, int], None]) -> Filled:
    """Embed and write whatever the file lacks, until a look at all of it finds nothing missing.

    Raises:
        UserError: an image changed meanwhile, a feature does not fit the cache's type, the disk is full, or, where
            ``work.strict``, an image is damaged.
    """
    rows, filled = len(work.dataset), Filled()
    before = dict(work.passes.seconds)
    while builder.look():
        on_progress(builder.done, rows)
        for _ in builder.copy():
            on_progress(builder.done, rows)
        begun = time.perf_counter()
        for batch in batches(work, builder.groups(work.group_rows), filled):
            features = work.passes.features(batch.images)
            computed = time.perf_counter()
            filled.embedded += _put(builder, work, batch, features)
            filled.seconds["write"] += time.perf_counter() - computed
            on_progress(builder.done, rows)
        filled.elapsed += time.perf_counter() - begun
    for step, seconds in work.passes.seconds.items():
        filled.seconds[step] += seconds - before.get(step, 0)
    return filled


def batches(work: Embedding, groups: list[tuple[str, NDArray[np.int64]]], filled: Filled) -> Iterator[Batch]:
    """Each group as read."""
    reader = BatchReader(
        images={name: split.images for name, split in work.dataset.splits.items()},
        content={name: rows.content for name, rows in work.plan.splits.items()},
        groups=groups,
        preprocessing=work.backbone.preprocessing,
        augmentation=work.augmentation,
    )
    read = reader.batches(workers=work.workers, pin_memory=work.device.type == "cuda")
    while True:
        begun = time.perf_counter()
        batch = next(read, None)
        filled.waited += time.perf_counter() - begun
        if batch is None:
            return
        if batch.changed is not None:
            name = work.plan.splits[batch.split].ids[batch.changed]
            raise UserError(f"{name} changed while it was being embedded; embed again")
        for step, seconds in batch.seconds.items():
            filled.seconds[step] += seconds
        yield batch


def _put(builder: CacheBuilder, work: Embedding, batch: Batch, features: NDArray[np.float32]) -> int:
    ids = [work.plan.splits[batch.split].ids[row] for row in batch.rows.tolist()]
    if batch.damaged and work.strict:
        position, message = min(batch.damaged.items())
        raise UserError(f"{ids[position]}: {message}; mend or remove it, or go without --strict")
    status, reasons = fate(batch, features)
    errors = {ids[position]: reason for position, reason in reasons.items()}
    return builder.put(batch.split, batch.rows, work.passes.stored(features), status, errors)


def fate(batch: Batch, features: NDArray[np.float32]) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """The status of each row of a batch, (n,), and why rows have no features, by position; these become zeros."""
    status = np.full(len(features), file_format.OK, np.uint8)
    flat = features.reshape(len(features), -1)
    status[~np.isfinite(flat).all(axis=1)] = file_format.NOT_FINITE
    status[list(batch.damaged)] = file_format.DAMAGED
    features[status != file_format.OK] = 0
    not_finite = np.flatnonzero(status == file_format.NOT_FINITE).tolist()
    return status, dict.fromkeys(not_finite, file_format.STATUS_NAMES[file_format.NOT_FINITE]) | batch.damaged
