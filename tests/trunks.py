"""Caches, models and plans for tests of frozen stages that run once."""

from __future__ import annotations

from typing import Any

import torch

from featcache.cache.cache_file import Cache
from featcache.models.backbones import Backbone
from finetune.cached_rows import backbone_of
from finetune.new_head import replace_head
from finetune.plans import Plan
from finetune.settings import Settings
from finetune.trunk_choice import TrunkChoice, choose_trunk
from heads.rows import Rows, load_rows

CPU = torch.device("cpu")
SGD = {"optimizer": "sgd", "batch_size": 8}


def rows_of(cache: Cache, seed: int = 0) -> Rows:
    """32 for training, 8 for validation, 12 for the test: batches of 8 are all whole."""
    return load_rows(cache, val_fraction=0.2, seed=seed, pool_maps=True, views="plain", rows_only=True)


def headed(cache: Cache, seed: int = 0) -> Backbone:
    backbone = backbone_of(cache)
    replace_head(backbone.staged, 2, seed=seed)
    return backbone


def chosen(cache: Cache, backbone: Backbone, plan: Plan, asked: Any = "on", **given: Any) -> TrunkChoice:
    ours = {"views": 0, "storage": "float32", "refit": True, "began": lambda option: False, "rows": rows_of(cache)}
    settings = Settings(**{**SGD, **{key: value for key, value in given.items() if key not in ours}})
    values = {key: given.get(key, value) for key, value in ours.items()}
    return choose_trunk(
        asked, cache=cache, folder=cache.path.parent, backbone=backbone, plan=plan, settings=settings, device=CPU,
        **values,
    )  # fmt: skip
