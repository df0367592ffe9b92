"""A cache in; the data set, rows and backbone that it was made of out, images and all: what fine-tuning trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from featcache.cache.cache_file import Cache
from featcache.common.errors import CacheError, UserError
from featcache.common.hashing import DIGEST_SIZE
from featcache.maintenance.image_provenance import OriginalImages, origin_of
from featcache.models.backbones import Backbone, load_backbone
from featcache.sources.image_sets import ImageDataset
from featcache.sources.preprocessing import Preprocessing
from finetune.image_source import ImageSource, Pictures
from finetune.settings import Augment
from heads.rows import Rows, SplitRows


def backbone_of(cache: Cache, *, from_scratch: bool = False, seed: int = 0) -> Backbone:
    """The backbone that a cache's features come from, with its own weights, or with random ones.

    Raises:
        UserError: the weights can't be had, or are not those of the cache.
    """
    encoder = cache.encoder
    preprocessing = Preprocessing.from_json(encoder["preprocessing"])
    backbone = load_backbone(
        encoder["backbone"],
        weights="none" if from_scratch else origin_of(cache).weights,
        seed=seed if from_scratch else encoder["weights"].get("seed", 0),
        image_size=preprocessing.image_size,
    )
    wanted, found = encoder["weights"]["sha256"], backbone.weights["sha256"]
    if not from_scratch and wanted != found:
        raise CacheError(
            f"{cache.path} was made with other weights of {encoder['backbone']} than those that are here now (SHA-256 "
            f"{wanted[:12]}, not {found[:12]}): embed again"
        )
    return replace(backbone, preprocessing=preprocessing)


@dataclass(frozen=True, eq=False, kw_only=True)
class TuningRows:
    """The rows of heads, with their images: train, val and test are `ImageSource`s in the order of ``rows``."""

    rows: Rows
    train: ImageSource
    val: ImageSource
    test: ImageSource


def tuning_rows(
    cache: Cache,
    rows: Rows,
    *,
    device: torch.device,
    augment: Augment = "none",
    workers: int = 0,
    dataset: ImageDataset | None = None,
) -> TuningRows:
    """Find the images of rows of a cache.

    Args:
        cache: that the rows were chosen from.
        rows: as `heads.rows.load_rows` gives them.
        device: where batches go.
        augment: what training batches go through.
        workers: threads that read and decode ahead.
        dataset: the one that was embedded; None finds it again.

    Raises:
        UserError: the data set is not there, or lacks images of the cache.
    """
    originals = OriginalImages.of(cache, dataset)
    dataset = originals.dataset
    held = {name: {row: i for i, row in enumerate(split.ids)} for name, split in cache.splits.items()}
    content = {name: np.zeros((len(split.ids), DIGEST_SIZE), np.uint8) for name, split in dataset.splits.items()}
    own_val = rows.own_validation
    found = {}
    for part, wanted, split in (
        ("train", rows.train, "train"),
        ("val", rows.val, "val" if own_val else "train"),
        ("test", rows.test, "test"),
    ):
        splits, numbers = _located(wanted, split, originals, cache)
        digests = cache.splits[split].content[[held[split][row] for row in wanted.ids]]
        for name in set(splits):
            mine = np.asarray(splits) == name
            content[name][numbers[mine]] = digests[mine]
        found[part] = (splits, numbers, wanted.labels)
    pictures = Pictures(
        images={name: split.images for name, split in dataset.splits.items()},
        content=content,
        preprocessing=Preprocessing.from_json(cache.encoder["preprocessing"]),
        workers=workers,
    )
    sources = {
        part: ImageSource(pictures=pictures, splits=splits, rows=numbers, labels=labels, device=device, augment=augment)
        for part, (splits, numbers, labels) in found.items()
    }
    return TuningRows(rows=rows, **sources)


def _located(
    wanted: SplitRows, split: str, originals: OriginalImages, cache: Cache
) -> tuple[Sequence[str], np.ndarray]:
    """The split and number of each row in the data set: in the split of that name, or wherever it is now."""
    splits, numbers = [], []
    for row in wanted.ids:
        place = originals.place(split, row)
        if place is None:
            raise UserError(f"{row} of {cache.path} is no longer in the data set {cache.dataset}: embed it again")
        splits.append(place[0])
        numbers.append(place[1])
    return splits, np.array(numbers, np.int64)
