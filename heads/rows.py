"""A cache and a choice of rows in; the features, labels and ids that a head is fitted and scored on out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache import layout
from featcache.cache import Cache
from featcache.errors import UserError
from featcache.subset import Subset
from heads.selection import carve_validation


@dataclass(frozen=True)
class SplitRows:
    """Rows of one split: ``features`` (N, D) float32, ``labels`` (N,) int64, ``ids`` (N,)."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.int64]) -> SplitRows:
        return SplitRows(self.features[rows], self.labels[rows], tuple(self.ids[row] for row in rows))


@dataclass(frozen=True)
class Rows:
    """What one head sees.

    Attributes:
        class_names: by label.
        train, val, test: disjoint; hyper-parameters are chosen on ``val``, ``test`` is scored once.
        fingerprint: of the ids and labels of all three; runs with the same one can be compared.
        notes: sentences for the user on what was decided.
        chosen: how the rows were chosen from the cache's, as JSON.
    """

    class_names: tuple[str, ...]
    train: SplitRows
    val: SplitRows
    test: SplitRows
    fingerprint: str
    notes: tuple[str, ...]
    chosen: dict[str, Any]


def load_rows(cache: Cache, *, subset: Subset | None = None, val_fraction: float = 0.1, seed: int = 0) -> Rows:
    """Read a cache's rows and settle its validation split.

    Rows without features and rows without a label are left out. Validation is the set's own split where it has one,
    else it is carved from train after subsetting, stratified.

    Args:
        cache: of vectors.
        subset: which rows to keep.
        val_fraction: the share of train that becomes validation, in (0, 1).
        seed: of the carving.

    Raises:
        UserError: fewer than two classes are left, a class has too few rows, or a block is damaged.
    """
    if not cache.holds_vectors:
        raise UserError(f"{cache.path}: holds maps (cut after {cache.encoder['cut']}), and heads need vectors")
    usable = {name: split.usable() for name, split in cache.splits.items()}
    labels = {name: split.labels[usable[name]] for name, split in cache.splits.items()}
    subset = subset or Subset(seed=seed)
    chosen, class_names, new_label = subset.choose(labels, cache.class_names)
    rows = {}
    for name, split in cache.splits.items():
        kept = usable[name][chosen[name]]
        if not len(kept):
            raise UserError(f"{cache.path}: no usable {name} rows are left; choose other --classes or a larger --limit")
        features = split.load(kept)
        plain = features[:, 0] if cache.encoder["views"] else features
        rows[name] = SplitRows(plain, new_label[split.labels[kept]], tuple(split.ids[row] for row in kept))
    notes = []
    left_out = sum(len(split) - len(usable[name]) for name, split in cache.splits.items())
    if left_out:
        notes.append(f"{left_out:,} rows of the cache have no features or no label and are left out")
    if views := cache.encoder["views"]:
        notes.append(f"{views['views']} augmented views of each image are in the cache; the head takes the plain one")
    if "val" in rows:
        train, val = rows["train"], rows["val"]
        notes.append(f"validation is the set's own split: {len(val):,} rows")
    else:
        kept, carved = carve_validation(rows["train"].labels, fraction=val_fraction, seed=seed, class_names=class_names)
        train, val = rows["train"].take(kept), rows["train"].take(carved)
        notes.append(f"validation is carved from train: {len(val):,} of {len(kept) + len(carved):,} rows (seed {seed})")
    test = rows["test"]
    how = {"subset": subset.to_json(), "val_fraction": None if "val" in rows else val_fraction, "seed": seed}
    return Rows(class_names, train, val, test, _fingerprint(train, val, test), tuple(notes), how)


def _fingerprint(*splits: SplitRows) -> str:
    told = [[list(split.ids), split.labels.tolist()] for split in splits]
    return layout.fingerprint(told)
