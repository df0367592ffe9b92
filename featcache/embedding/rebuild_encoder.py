"""Rebuild the encoder that a cache or a run records, so that it computes the same features today."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.common import hashing
from featcache.common.errors import UserError
from featcache.common.hashing import differing_fields

if TYPE_CHECKING:
    import torch

    from featcache.embedding.job import Embedding

#: Views of an image beyond which a record is not believed.
_MAX_VIEWS = 4096
#: How torchvision spells an entry of its weights.
_ENTRY = re.compile(r"\w+_Weights\.(\w+)")


def rebuilt(
    encoder: Mapping[str, Any],
    *,
    recorded: str,
    weights: str | None = None,
    device: torch.device,
    batch_size: int | None = None,
    engine: str | None = None,
    workers: int = 0,
    cache_dir: Path = Path("features"),
) -> Embedding:
    """The embedding of no images yet that has this encoder, checked field by field; its engine is not set up.

    Args:
        encoder: the JSON that ``Backbone.encoder`` gave; it may come from a stranger.
        recorded: the name of its weights.
        weights: a file, for encoders whose weights came from one; recorded names serve otherwise.
        device: to compute on.
        batch_size: images a forward pass; None leaves it to the device.
        engine: another one than the encoder's.
        workers, cache_dir: as in ``Embedding``.

    Raises:
        UserError: that encoder can't be had here; the message says why, or which fields differ.
    """
    from featcache.embedding.job import Embedding
    from featcache.engines.backends import ENGINES, INT8, PRECISIONS, unavailable
    from featcache.models.backbones import load_backbone
    from featcache.sources.augmented_views import Augmentation
    from featcache.sources.image_sets import ImageDataset
    from featcache.sources.preprocessing import Preprocessing

    try:
        name, precision, storage, cut = (str(encoder[key]) for key in ("backbone", "precision", "storage", "cut"))
        way = str(encoder["engine"]) if engine is None else engine
        if precision == INT8:
            raise UserError("int8's ranges come from images of the data set, which are not in the file")
        if precision not in PRECISIONS or storage not in ("float16", "float32") or way not in ENGINES:
            raise UserError(f"engine {way!r}, precision {precision!r} and storage {storage!r} are not known here")
        if reason := unavailable(way, precision, device):
            raise reason
        preprocessing = Preprocessing.from_json(encoder["preprocessing"])
        augmentation = Augmentation.from_json(encoder["views"]) if encoder["views"] else None
        if augmentation is not None and augmentation.views > _MAX_VIEWS:
            raise ValueError(f"{augmentation.views:,} views")
        seed = int(encoder["weights"].get("seed", 0))
        chosen = _weights(encoder, recorded, weights)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"its encoder has fields that are not known here ({error})") from error
    backbone = load_backbone(
        name,
        weights=chosen,
        seed=seed,
        image_size=preprocessing.image_size,
        resize=preprocessing.resize,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )
    embedding = Embedding(
        dataset=ImageDataset("pictures", (), {}),
        backbone=backbone,
        cache_dir=cache_dir,
        cut=backbone.staged.cut_after(cut),
        storage=storage,
        engine=way,
        precision=precision,
        device=device,
        batch_size=batch_size,
        workers=workers,
        augmentation=augmentation,
    )
    expected = {**encoder, "engine": way}
    if differing := differing_fields(expected, embedding.encoder):
        fields = "; ".join(
            f"{field} is {_told(now)} today, not {_told(then)}" for field, (then, now) in differing.items()
        )
        raise UserError(f"the encoder that can be had here is another one: {fields}")
    return embedding


def _weights(encoder: Mapping[str, Any], recorded: str, given: str | None) -> str | None:
    """What ``load_backbone`` takes; a name from a file never becomes a path."""
    if given is not None:
        return given
    if "seed" in encoder["weights"]:
        return "none"
    if entry := _ENTRY.fullmatch(recorded):
        return entry[1]
    if encoder["backbone"] == "efficientnet_lite0" or recorded.startswith("timm/"):
        return None
    raise UserError(f"its weights came from a file, {recorded}: give it by --weights FILE")


def _told(value: Any) -> str:
    return value if isinstance(value, str) else hashing.canonical_json(value)
