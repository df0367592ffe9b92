"""Describe all that a cache says of itself as one JSON object."""

from __future__ import annotations

from typing import Any

import numpy as np

from featcache.cache import file_format
from featcache.cache.cache_file import Cache
from featcache.cache.split import CachedSplit
from featcache.maintenance.inventory import rows_done


def describe(cache: Cache) -> dict[str, Any]:
    """What ``bin/cache info`` tells; of a file in the making only how many of its rows count.

    Raises:
        CacheError: the labels, ids, status or origin of a split do not match their checksums.
    """
    sealed = cache.provenance["sealed"] is True
    return {
        "file": str(cache.path),
        "bytes": cache.n_bytes,
        "sealed": sealed,
        "dataset": cache.dataset,
        "class_names": list(cache.class_names),
        "encoder": cache.encoder,
        "encoder_fingerprint": cache.encoder_fingerprint,
        "fingerprint": cache.fingerprint,
        "root_digest": cache.provenance.get("root_digest"),
        "provenance": cache.provenance,
        "splits": {
            name: {**_shape(split), **(_rows(cache, split) if sealed else {})} for name, split in cache.splits.items()
        },
    }


def _shape(split: CachedSplit) -> dict[str, Any]:
    return {
        "rows": len(split),
        "rows_done": rows_done(split),
        "row_shape": list(split.row_shape),
        "features_bytes": split.stored["features"].n_bytes,
    }


def _rows(cache: Cache, split: CachedSplit) -> dict[str, Any]:
    labels, counts = np.unique(split.labels, return_counts=True)
    of_label = dict(zip(labels.tolist(), counts.tolist(), strict=True))
    of_class = [{"name": name, "rows": of_label.pop(label, 0)} for label, name in enumerate(cache.class_names)]
    unlabelled = sum(count for label, count in of_label.items() if label < 0)
    damaged = [
        {
            "id": split.ids[row],
            "reason": split.errors.get(split.ids[row]) or file_format.status_name(int(split.status[row])),
        }
        for row in np.flatnonzero(split.status != file_format.OK).tolist()
    ]
    return {
        "classes": of_class,
        "unlabelled": unlabelled,
        "damaged": damaged,
        "origin": _origin(cache, split),
    }


def _origin(cache: Cache, split: CachedSplit) -> list[dict[str, Any]]:
    """How many rows were embedded for this file (``file`` is None), and how many came from which other."""
    sources = [None, *(str(source.get("file")) for source in cache.provenance["reused"] if isinstance(source, dict))]
    numbers, counts = np.unique(split.origin, return_counts=True)
    return [
        {"file": sources[number] if number < len(sources) else f"source {number}, not recorded", "rows": count}
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)
    ]
