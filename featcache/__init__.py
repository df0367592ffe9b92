"""Embed a data set once with a frozen backbone, and read its verified features back in milliseconds.

The public names load when first used (PEP 562), so that reading a cache needs neither torch nor torchvision.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featcache.cache.cache_file import Cache, find_caches
    from featcache.common.errors import CacheError, UsageError, UserError
    from featcache.embedding.embedder import Embedder
    from featcache.embedding.job import Embedding
    from featcache.models.backbones import Backbone, load_backbone
    from featcache.models.stages import Stage, StagedModel
    from featcache.sources.image_sets import ImageDataset, load_dataset
    from featcache.sources.preprocessing import Preprocessing
    from featcache.tables.subset import Subset

__version__ = "0.1.0"

_HOMES = {
    "Backbone": "models.backbones",
    "load_backbone": "models.backbones",
    "Cache": "cache.cache_file",
    "find_caches": "cache.cache_file",
    "ImageDataset": "sources.image_sets",
    "load_dataset": "sources.image_sets",
    "Embedder": "embedding.embedder",
    "Embedding": "embedding.job",
    "CacheError": "common.errors",
    "UsageError": "common.errors",
    "UserError": "common.errors",
    "Preprocessing": "sources.preprocessing",
    "Stage": "models.stages",
    "StagedModel": "models.stages",
    "Subset": "tables.subset",
}

__all__ = [
    "Backbone",
    "Cache",
    "CacheError",
    "Embedder",
    "Embedding",
    "ImageDataset",
    "Preprocessing",
    "Stage",
    "StagedModel",
    "Subset",
    "UsageError",
    "UserError",
    "find_caches",
    "load_backbone",
    "load_dataset",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
