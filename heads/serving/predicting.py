"""A loaded run and paths of images in; a prediction for each, a batch at a time and in order, out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from featcache.cache.file_format import NOT_FINITE, STATUS_NAMES
from featcache.common.errors import UserError
from featcache.common.prefetch import read_ahead
from featcache.sources.batches import read_views
from featcache.sources.image_sets import FileImages
from heads.serving.loaded_run import LoadedRun
from heads.serving.predictions import Prediction
from heads.serving.training_neighbors import TrainingNeighbors


@dataclass(frozen=True, eq=False, kw_only=True)
class Predicting:
    """What is asked of a run.

    Attributes:
        run: as loaded.
        top: so many classes of each image.
        abstain: the class is left open where its probability is below this; None never leaves it open.
        neighbors: so many training images of each.
        among: where these are looked for.
        strict: whether an image without features is an error.
        workers: threads that read ahead, at most one batch each and one more.
    """

    run: LoadedRun
    top: int = 1
    abstain: float | None = None
    neighbors: int = 0
    among: TrainingNeighbors | None = None
    strict: bool = False
    workers: int = 0

    def batches(self, paths: Iterator[str]) -> Iterator[PredictedBatch]:
        """All images in order. Paths are asked for as they are needed.

        Raises:
            UserError: with ``strict``, the first image without features; or the GPU has too little memory.
        """
        size = min(embedding.group_rows for embedding in self.run.serving)
        groups = iter(lambda: tuple(islice(paths, size)), ())
        for read in read_ahead(self._read, groups, workers=self.workers):
            try:
                yield PredictedBatch(self._predicted(read), read.marks)
            except torch.cuda.OutOfMemoryError as error:
                raise UserError(
                    f"the GPU has too little memory for {size} images: take a smaller --batch-size"
                ) from error

    def _read(self, paths: tuple[str, ...], stop: threading.Event) -> _ReadPaths:
        marks = tuple(map(mark_of, paths))
        source, rows = FileImages(Path(), paths), np.arange(len(paths))
        images: list[Tensor] = []
        damaged: dict[int, str] = {}
        for each in self.run.serving:
            read = read_views(source, rows, each.backbone.preprocessing, each.augmentation, stop)
            images.append(read.images.pin_memory() if each.device.type == "cuda" else read.images)
            damaged |= read.damaged
        return _ReadPaths(paths, marks, tuple(images), damaged)

    def _predicted(self, read: _ReadPaths) -> tuple[Prediction, ...]:
        features, usable = self.run.features(read.images)
        errors = dict.fromkeys(np.flatnonzero(~usable).tolist(), STATUS_NAMES[NOT_FINITE]) | read.damaged
        if self.strict and errors:
            row, message = min(errors.items())
            raise UserError(f"{read.paths[row]}: {message}; mend or remove it, or go without --strict")
        values = self.run.probabilities(features) if self.run.probabilistic else self.run.scores(features)
        order = np.argsort(-values, axis=1, kind="stable")[:, : self.top]
        near = self.among.nearest(features, self.neighbors) if self.among else [[] for _ in read.paths]
        found = []
        for row, path in enumerate(read.paths):
            if row in errors:
                found.append(Prediction(path=path, error=errors[row]))
                continue
            ranked = tuple((self.run.class_names[label], float(values[row, label])) for label in order[row].tolist())
            abstained = self.abstain is not None and ranked[0][1] < self.abstain
            found.append(Prediction(path=path, ranked=ranked, abstained=abstained, neighbors=tuple(near[row])))
        return tuple(found)


@dataclass(frozen=True)
class PredictedBatch:
    """What is said of some images, and their marks (see `mark_of`)."""

    predictions: tuple[Prediction, ...]
    marks: tuple[str, ...]


@dataclass(frozen=True)
class _ReadPaths:
    """Some images as the networks see them, one tensor for each of the run's embeddings."""

    paths: tuple[str, ...]
    marks: tuple[str, ...]
    images: tuple[Tensor, ...]
    damaged: dict[int, str]


def mark_of(path: str) -> str:
    """What tells an image from another one, or from itself before it was changed, without reading it."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return f"{path}\0"
    return f"{path}\0{status.st_size} {status.st_mtime_ns}"
