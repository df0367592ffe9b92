"""What tests of rows compare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from featcache.cache.cache_file import Cache
from featcache.embedding.job import Embedding
from featcache.sources.augmented_views import Augmentation
from heads.rows import Rows

Embed = Callable[..., Embedding]
MakeFolder = Callable[..., Path]
VIEWS = Augmentation(views=2, seed=5)


def assert_same(a: Rows, b: Rows, *, notes: bool = True) -> None:
    assert (a.class_names, a.fingerprint, a.chosen) == (b.class_names, b.fingerprint, b.chosen)
    assert not notes or a.notes == b.notes
    for one, other in ((a.train, b.train), (a.val, b.val), (a.test, b.test), (a.dev, b.dev)):
        assert one.ids == other.ids
        np.testing.assert_array_equal(one.labels, other.labels)
        assert one.features.n_views == other.features.n_views
        assert one.features.expanded().load().tobytes() == other.features.expanded().load().tobytes()


def by_id(cache: Cache) -> dict[str, np.ndarray]:
    return {name: row for split in cache.splits.values() for name, row in zip(split.ids, split.load(), strict=True)}
