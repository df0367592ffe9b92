"""A backbone with all that decides its features, for images of no data set; it writes nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from featcache.build.plan import PlannedRows
from featcache.build.reuse import Wanted
from featcache.common import hashing
from featcache.common.errors import UserError
from featcache.embedding.embed_rows import Filled, batches, fate
from featcache.embedding.job import Embedding
from featcache.engines.backends import unavailable
from featcache.engines.engine_choice import default_batch
from featcache.engines.fidelity_gate import Gate
from featcache.sources.image_inputs import DistinctImages, damaged
from featcache.sources.image_sets import ImageDataset, Split

#: What an encoder's embedding is of.
NO_IMAGES = ImageDataset("embedder", ("unlabelled",), {})
#: The split that images are embedded as.
SPLIT = "train"

_NONE = np.empty((0, hashing.DIGEST_SIZE), np.uint8)


@dataclass(frozen=True, eq=False)
class Encoder:
    """How images become features: ``embedding``, of no data set yet, its engine and precision settled."""

    embedding: Embedding

    @property
    def n_features(self) -> int:
        """D, the length of a feature vector."""
        return int(np.prod(self.embedding.row_shape))

    @cached_property
    def wanted(self) -> Wanted:
        """Which caches serve: those of this encoder that today's stack agrees with."""
        fingerprint = hashing.fingerprint(self.embedding.encoder)
        return Wanted(fingerprint, self.embedding.canary(), self.embedding.precision)

    def embedding_of(self, images: DistinctImages, *, workers: int, more: NDArray[np.uint8] = _NONE) -> Embedding:
        """The work of embedding images as one unlabelled split, their ids their contents in hex.

        Args:
            images: n of different contents.
            workers: threads that read and decode ahead.
            more: (m, 16) uint8, contents whose rows are to follow, as caches of the folder hold them.
        """
        content = np.concatenate([images.content, more])
        ids = tuple(row.tobytes().hex() for row in content)
        labels, n_new = np.full(len(ids), -1, np.int64), len(images.names)
        split = Split(ids[:n_new], labels[:n_new], images.images)
        dataset = replace(self.embedding.dataset, splits={SPLIT: split})
        rows = {SPLIT: PlannedRows(ids, labels, content)}
        return replace(self.embedding, dataset=dataset, rows=rows, workers=workers)

    def features(self, images: DistinctImages, *, workers: int) -> NDArray[np.float32]:
        """Embed images; nothing is written.

        Returns:
            (n, D) float32, as the storage type rounds them.

        Raises:
            UserError: images are damaged or changed meanwhile, or as embedding raises it.
        """
        work = self.embedding_of(images, workers=workers)
        if (reason := unavailable(work.engine, work.precision, work.device)) is not None:
            raise reason
        work = replace(work, batch_size=work.batch_size or default_batch(work.device))
        found = np.empty((len(images.names), self.n_features), np.float32)
        reasons: dict[str, str] = {}
        numbers = np.arange(len(images.names))
        groups = [(SPLIT, numbers[i : i + work.group_rows]) for i in range(0, len(numbers), work.group_rows)]
        try:
            work = replace(work, prepared=Gate(work).passed(work, timed=False))
            for batch in batches(work, groups, Filled()):
                features = work.passes.features(batch.images)
                reasons |= {images.names[batch.rows[i]]: reason for i, reason in fate(batch, features)[1].items()}
                found[batch.rows] = work.passes.stored(features).reshape(len(features), -1)
        except torch.cuda.OutOfMemoryError as error:
            message = (
                f"{work.device} has too little memory for batches of {work.pass_images}: take a smaller batch_size"
            )
            raise UserError(message) from error
        if reasons:
            raise damaged(reasons)
        return found
