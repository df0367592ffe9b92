"""The run of a fine-tuning in; its trunk as an embedding, and its last linear layer as a head, out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from featcache.common.errors import UserError
from featcache.common.files import one_line
from featcache.common.hashing import differing_fields
from featcache.embedding.job import Embedding
from featcache.engines.backends import PRECISIONS
from featcache.models.backbones import load_backbone
from featcache.sources.image_sets import ImageDataset
from heads.predictors import LinearHead


def tuned_model(folder: Path, record: Mapping[str, Any], **settings: Any) -> tuple[Embedding, LinearHead]:
    """Load the weights of a run and compare their digest with the recorded one.

    Args:
        folder, record: the run's, and its ``run.json``.
        settings: of the embedding: device, engine (None for eager), batch_size, workers.

    Raises:
        UserError: the parts of the run don't fit each other, or images can't be preprocessed here as it saw them.
    """
    encoder, precision = record["encoder"], record["params"].get("precision")
    if not isinstance(encoder.get("backbone"), str) or precision not in PRECISIONS:
        raise UserError(f"{folder}: run.json does not tell of its backbone and precision as runs do")
    backbone = load_backbone(encoder["backbone"], weights=str(folder.resolve()))
    digest = backbone.weights["sha256"]
    if digest != (recorded := record.get("model_sha256", digest)):
        raise UserError(
            f"{folder}: model.pth holds other weights than the run recorded (SHA-256 {digest[:12]}, not "
            f"{one_line(recorded)[:12]}); train it again"
        )
    today = backbone.preprocessing.to_json()
    if differing := differing_fields(encoder.get("preprocessing", {}), today):
        fields = "; ".join(f"{name} is {now} today, not {one_line(then)}" for name, (then, now) in differing.items())
        raise UserError(f"{folder}: images can't be preprocessed here as it saw them: {fields}")
    embedding = Embedding(
        dataset=ImageDataset("pictures", (), {}),
        backbone=backbone,
        cache_dir=folder,
        storage="float32",
        precision=precision,
        **{**settings, "engine": settings["engine"] or "eager"},
    )
    return embedding, _as_head(backbone.staged.head)


def _as_head(layer: nn.Linear) -> LinearHead:
    """On features that are not standardised."""
    weight = layer.weight.detach().float().numpy().copy()
    n_classes, n_features = weight.shape
    bias = np.zeros(n_classes, np.float32) if layer.bias is None else layer.bias.detach().float().numpy().copy()
    return LinearHead.from_arrays(
        {
            "mean": np.zeros(n_features, np.float32),
            "scale": np.ones(n_features, np.float32),
            "weight": weight,
            "bias": bias,
            "probabilistic": np.asarray(True),
        }
    )
