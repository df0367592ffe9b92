"""Read every image of a data set once for its digest, before any is decoded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.build.plan import PlannedRows
from featcache.common import hashing
from featcache.common.errors import UserError
from featcache.common.ranks import Ranks
from featcache.engines.fidelity_gate import CALIBRATION_IMAGES, spread_rows
from featcache.sources.image_sets import ImageDataset, Images


def planned_rows(dataset: ImageDataset, ranks: Ranks) -> dict[str, PlannedRows]:
    """The rows of each split. All ranks together: each digests a part of the images.

    Raises:
        UserError: a split is empty or missing, or this rank was given other rows than the first.
    """
    for name, split in dataset.splits.items():
        if not split.ids:
            raise UserError(f"{dataset.name}: no images left in {name}; choose more, or leave the split out")
    if not {"train", "test"} <= set(dataset.splits) <= {"train", "val", "test"}:
        raise UserError(
            f"{dataset.name} has the splits {', '.join(dataset.splits)}; expected train, test and at most val"
        )
    unread = np.empty((0, hashing.DIGEST_SIZE), np.uint8)
    told = [PlannedRows(split.ids, split.labels, unread).digest() for split in dataset.splits.values()]
    ranks.require_same(hashing.fingerprint([dataset.name, dataset.class_names, dataset.selection, told]), "rows")
    read = {name: _digests(split.images, ranks) for name, split in dataset.splits.items()}
    return {name: PlannedRows(split.ids, split.labels, read[name]) for name, split in dataset.splits.items()}


def _digests(images: Images, ranks: Ranks) -> NDArray[np.uint8]:
    if ranks.is_alone:
        return images.digests()
    part = ranks.part(len(images))
    return ranks.gather_rows(images.take(np.arange(part.start, part.stop)).digests())


def calibration(rows: Mapping[str, PlannedRows], *, batch: int) -> dict[str, Any]:
    """What int8's ranges are taken from, as the encoder tells it: some images of the first split, evenly spaced.

    The ranges are statistics of whole batches, so their size has a part in them.
    """
    first = next(iter(rows.values()))
    content = first.content[spread_rows(len(first.ids), CALIBRATION_IMAGES)]
    return {"images": len(content), "content": hashing.digest(np.ascontiguousarray(content)).hex(), "batch": batch}
