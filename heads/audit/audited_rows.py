"""A cache in; all its rows as one list, split after split, those without features told apart, out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featcache.cache import file_format
from featcache.cache.cache_file import Cache
from featcache.common.errors import UserError
from heads.cached_features import features_of
from heads.features import Features
from heads.joined_features import stacked
from heads.rows import KEPT_BYTES
from heads.standardization import Labels


@dataclass(frozen=True, eq=False, kw_only=True)
class Damaged:
    """A row without features: where it is, its label (-1 where it has none), and why."""

    split: str
    id: str
    label: int
    reason: str


@dataclass(frozen=True, eq=False, kw_only=True)
class AuditedRows:
    """The N rows of a cache that have features; of two rows with the same id, the split tells which is which.

    Attributes:
        class_names: by label.
        split_names: in the order of the rows.
        split: (N,) int64, the place of each row's split in ``split_names``.
        ids: (N,).
        labels: (N,) int64, -1 where a row has none.
        content: (N, 16) uint8 digests of the images' bytes.
        features: of all views.
        damaged: the rows without features.
    """

    class_names: tuple[str, ...]
    split_names: tuple[str, ...]
    split: Labels
    ids: tuple[str, ...]
    labels: Labels
    content: NDArray[np.uint8]
    features: Features
    damaged: tuple[Damaged, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def is_test(self, row: int) -> bool:
        return self.split_names[self.split[row]] == "test"

    def split_of(self, row: int) -> str:
        return self.split_names[self.split[row]]

    def class_of(self, row: int) -> str:
        """The name of the row's class; empty where it has no label."""
        label = int(self.labels[row])
        return self.class_names[label] if label >= 0 else ""

    def named(self, row: int) -> str:
        """The row as a person is told of it."""
        return f"{self.split_of(row)} {self.ids[row]}"


def audited_rows(cache: Cache) -> AuditedRows:
    """All rows of a cache; maps are averaged over their positions.

    Raises UserError where no row has features, or a block that is read here does not match its checksum.
    """
    split, ids, labels, content, parts, damaged = [], [], [], [], [], []
    for number, (name, each) in enumerate(cache.splits.items()):
        ok = np.flatnonzero(each.status == file_format.OK)
        split.append(np.full(len(ok), number, np.int64))
        ids += [each.ids[row] for row in ok.tolist()]
        labels.append(each.labels[ok])
        content.append(each.content[ok])
        parts.append(features_of(cache, name, ok))
        for row in np.flatnonzero(each.status != file_format.OK).tolist():
            reason = each.errors.get(each.ids[row]) or file_format.STATUS_NAMES.get(
                int(each.status[row]), "no features"
            )
            damaged.append(Damaged(split=name, id=each.ids[row], label=int(each.labels[row]), reason=reason))
    if not ids:
        raise UserError(f"{cache.path}: no row has features, so that there is nothing to audit; embed other images")
    features: Features = stacked([part for part in parts if len(part)])
    if features.n_bytes <= KEPT_BYTES:
        features = features.kept()
    return AuditedRows(
        class_names=cache.class_names,
        split_names=tuple(cache.splits),
        split=np.concatenate(split),
        ids=tuple(ids),
        labels=np.concatenate(labels),
        content=np.concatenate(content),
        features=features,
        damaged=tuple(damaged),
    )
