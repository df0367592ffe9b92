"""Images in, verified features out: embed a data set once with a frozen backbone, read it back in milliseconds.

The public names load when first used (PEP 562), so that reading a cache needs neither torch nor torchvision.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featcache.backbones import Backbone, load_backbone
    from featcache.cache import Cache, find_caches
    from featcache.datasets import ImageDataset, load_dataset
    from featcache.embedder import Embedder
    from featcache.embedding import Embedding
    from featcache.errors import CacheError, UsageError, UserError
    from featcache.preprocessing import Preprocessing
    from featcache.stages import Stage, StagedModel
    from featcache.subset import Subset

__version__ = "0.1.0"

_HOMES = {
    "Backbone": "backbones",
    "load_backbone": "backbones",
    "Cache": "cache",
    "find_caches": "cache",
    "ImageDataset": "datasets",
    "load_dataset": "datasets",
    "Embedder": "embedder",
    "Embedding": "embedding",
    "CacheError": "errors",
    "UsageError": "errors",
    "UserError": "errors",
    "Preprocessing": "preprocessing",
    "Stage": "stages",
    "StagedModel": "stages",
    "Subset": "subset",
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
