"""What a cache will hold, settled before the first image is decoded; its fingerprint and file name follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.cache import file_format
from featcache.cache.cache_file import Cache
from featcache.common import hashing


@dataclass(frozen=True)
class PlannedRows:
    """What is known of a split before any image is decoded: ``labels`` (N,) int64, ``content`` (N, 16) uint8."""

    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    content: NDArray[np.uint8]

    @cached_property
    def encoded_ids(self) -> NDArray[np.bytes_]:
        """(N,) fixed-length UTF-8, as the file holds them."""
        encoded = [name.encode() for name in self.ids]
        return np.array(encoded, dtype=f"S{max(map(len, encoded))}")

    def digest(self) -> dict[str, Any]:
        """How the fingerprint tells these rows from others, their order included."""
        return {
            "rows": len(self.ids),
            "ids": hashing.digest("\n".join(self.ids).encode()).hex(),
            "labels": hashing.digest(self.labels.astype("<i8")).hex(),
            "content": hashing.digest(self.content).hex(),
        }


@dataclass(frozen=True)
class Plan:
    """All that a cache will be, features aside.

    Attributes:
        encoder: JSON; see ``Backbone.encoder``.
        class_names: by label.
        splits: the rows, by split.
        source: JSON on where the rows came from; its ``dataset`` names the data set.
        feature_shape: of one row's features.
    """

    encoder: Mapping[str, Any]
    class_names: tuple[str, ...]
    splits: Mapping[str, PlannedRows]
    source: Mapping[str, Any]
    feature_shape: tuple[int, ...]

    @property
    def fingerprint(self) -> str:
        rows = {name: split.digest() for name, split in self.splits.items()}
        told = {"encoder": dict(self.encoder), "source": dict(self.source), "rows": rows, "classes": self.class_names}
        return hashing.fingerprint(told)

    @property
    def content(self) -> NDArray[np.uint8]:
        """(N, 16) content digests of all splits' rows."""
        return np.concatenate([rows.content for rows in self.splits.values()])

    def describes(self, cache: Cache) -> bool:
        """Whether a cache holds these very rows of this encoder, whatever fingerprint it claims to have."""
        held = {
            name: PlannedRows(split.ids, split.labels, split.content).digest() for name, split in cache.splits.items()
        }
        planned = {name: rows.digest() for name, rows in self.splits.items()}
        return (cache.encoder_fingerprint, held) == (self.encoder_fingerprint, planned)

    @property
    def file_name(self) -> str:
        words = "-".join((self.source["dataset"], str(self.encoder["backbone"]), self.fingerprint[:8]))
        return "".join(c if c.isalnum() or c in "._-" else "_" for c in words) + ".h5"

    @property
    def block_rows(self) -> int:
        """Rows that share a checksum."""
        return file_format.block_rows(file_format.n_bytes(np.dtype(self.encoder["storage"]), self.feature_shape))

    @property
    def attributes(self) -> dict[str, Any]:
        """The root attributes of the file, as JSON values."""
        return {
            "format": file_format.FORMAT,
            "format_version": file_format.FORMAT_VERSION,
            "encoder": hashing.canonical_json(self.encoder),
            "encoder_fingerprint": self.encoder_fingerprint,
            "class_names": list(self.class_names),
            "block_rows": self.block_rows,
        }

    @property
    def encoder_fingerprint(self) -> str:
        return hashing.fingerprint(self.encoder)

    def data_sets(self, canary_ids: tuple[str, ...]) -> file_format.DataSets:
        """The type and shape of each data set of the file, by path."""
        shared: dict[str, Any] = {"feature_shape": self.feature_shape, "storage": str(self.encoder["storage"])}
        id_size = max(len(name.encode()) for name in canary_ids)
        parts = {"canary": file_format.canary_data_sets(len(canary_ids), id_size=id_size, **shared)}
        for name, rows in self.splits.items():
            id_size = rows.encoded_ids.dtype.itemsize
            parts[name] = file_format.split_data_sets(
                len(rows.ids), id_size=id_size, block_rows=self.block_rows, **shared
            )
        return {f"{group}/{name}": part for group, each in parts.items() for name, part in each.items()}
