"""Caches and a choice of rows in; the features, labels and ids that a head is fitted and scored on out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from featcache.cache.cache_file import Cache
from featcache.common import hashing
from featcache.common.errors import UsageError, UserError, one_of
from featcache.tables.subset import Subset, carve, row_numbers
from heads.cached_features import features_of
from heads.exclusion import Exclusion
from heads.features import Features
from heads.joined_features import joined, stacked
from heads.joining import match
from heads.row_notes import classes_without, leaks, left_out, told_features
from heads.standardization import Labels

#: Features that take no more than this in memory, as float32, all rows and views, are read once and kept. Others are
#: read from their files, and converted, each time that they are gone through.
KEPT_BYTES = 1 << 30

VIEWS = ("all", "plain")

_DIGESTED_AT_ONCE = 1 << 16


@dataclass(frozen=True, eq=False)
class SplitRows:
    """Rows of one split: ``features`` of N images, ``labels`` (N,) int64, ``ids`` (N,)."""

    features: Features
    labels: Labels
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Labels) -> SplitRows:
        """Some rows, int64 (n,), in the order asked for, or booleans (N,); nothing is read."""
        rows = row_numbers(rows, len(self), of="the split")
        return SplitRows(self.features.take(rows), self.labels[rows], tuple(self.ids[row] for row in rows.tolist()))


@dataclass(frozen=True, eq=False)
class Rows:
    """What one head sees.

    Attributes:
        class_names: by label.
        train, val, test: disjoint; hyper-parameters are chosen on ``val``, ``test`` is scored once.
        fingerprint: of the ids and labels of all three; runs with the same one can be compared.
        notes: sentences for the user on what was decided.
        chosen: how the rows were chosen from the cache's, as JSON.
        uncarved: the rows before validation was settled.
    """

    class_names: tuple[str, ...]
    train: SplitRows
    val: SplitRows
    test: SplitRows
    fingerprint: str
    notes: tuple[str, ...]
    chosen: dict[str, Any]
    uncarved: UncarvedRows

    @cached_property
    def dev(self) -> SplitRows:
        """The rows of train, then those of val."""
        return SplitRows(
            stacked([self.train.features, self.val.features]),
            np.concatenate([self.train.labels, self.val.labels]),
            self.train.ids + self.val.ids,
        )

    @property
    def own_validation(self) -> bool:
        """Whether ``val`` is the set's own split, and not carved from train."""
        return self.uncarved.val is not None

    def recarved(self, seed: int) -> Rows:
        """The rows as `load_rows` gives them with this seed (and the same subset), without reading them again.

        Validation that is the set's own stays as it is.
        """
        if self.own_validation:
            return replace(self, chosen={**self.chosen, "seed": seed})
        return self.uncarved.carved(seed)


@dataclass(frozen=True, eq=False, kw_only=True)
class UncarvedRows:
    """Rows whose validation split is not settled: ``val`` is None unless the set has its own.

    ``train`` is as in the cache, after subsetting. ``notes`` are on what was decided so far, ``subset`` is as JSON, and
    so is ``excluded``, what was left out by name, where something was.
    """

    class_names: tuple[str, ...]
    train: SplitRows
    val: SplitRows | None
    test: SplitRows
    notes: tuple[str, ...]
    subset: dict[str, Any]
    val_fraction: float
    excluded: dict[str, Any] | None = None

    def carved(self, seed: int) -> Rows:
        """Settle validation: the set's own, or a stratified share of train, drawn with the seed."""
        train, val, test = self.train, self.val, self.test
        if val is not None:
            note = f"validation is the set's own split: {len(val):,} rows"
        else:
            kept, drawn = carve_validation(train.labels, fraction=self.val_fraction, seed=seed)
            note = f"validation is carved from train: {len(drawn):,} of {len(train):,} rows (seed {seed})"
            train, val = train.take(kept), train.take(drawn)
        how = {"subset": self.subset, "val_fraction": None if self.val is not None else self.val_fraction, "seed": seed}
        if self.excluded is not None:
            how["exclude"] = self.excluded
        notes = (
            *self.notes,
            note,
            *classes_without(val.labels, "validation", self.class_names),
            *classes_without(test.labels, "test", self.class_names),
        )
        return Rows(self.class_names, train, val, test, rows_fingerprint(train, val, test), notes, how, self)


def load_rows(
    caches: Cache | Sequence[Cache],
    *,
    subset: Subset | None = None,
    exclude: Exclusion | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    pool_maps: bool = False,
    views: str = "all",
    rows_only: bool = False,
) -> Rows:
    """Choose rows of a cache, or of several whose features are put side by side, and settle the validation split.

    Rows without features and rows without a label are left out. Validation is the set's own split where it has one,
    else it is carved from train after subsetting, stratified. Features of at most `KEPT_BYTES` are read here and kept;
    larger ones are read when they are gone through.

    Rows of several caches are joined by id and content within each split; those that are not usable in all of them are
    left out. Labels, order and fingerprint are those of the first.

    Args:
        caches: of vectors, or of maps with ``pool_maps``.
        subset: which rows to keep.
        exclude: rows to leave out before the subset is chosen, as if the cache did not have them.
        val_fraction: the share of train that becomes validation, in (0, 1).
        seed: of the carving.
        pool_maps: whether maps are averaged over their positions.
        views: ``all``, or ``plain`` for only the plain one of caches with augmented views.
        rows_only: whether features are of no interest: none are read here, and no notes are on them.

    Raises:
        UserError: fewer than two classes are left, a class has too few rows, a block is damaged (where features are
            read here), a cache holds maps, caches do not belong together, or none of the rows to exclude is there.
    """
    caches = (caches,) if isinstance(caches, Cache) else tuple(caches)
    if views not in VIEWS:
        raise one_of("choice of --views", views, list(VIEWS))
    for cache in caches:
        if "test" not in cache.splits:
            raise UserError(
                f"{cache.path}: has no test split, as it was made for its own rows: take one of bin/embed's"
            )
        if not cache.holds_vectors and not pool_maps:
            raise UserError(
                f"{cache.path}: holds maps (cut after {cache.encoder['cut']}), and heads need vectors: "
                "--pool averages maps over their positions"
            )
    first, matched = caches[0], match(caches)
    usable, excluded = matched.rows, None
    if exclude is not None:
        ids = {name: [first.splits[name].ids[row] for row in own[0].tolist()] for name, own in usable.items()}
        excluded = exclude.keeps(ids)
        usable = {name: tuple(rows[excluded.kept[name]] for rows in own) for name, own in usable.items()}
    labels = {name: first.splits[name].labels[own[0]] for name, own in usable.items()}
    subset = subset or Subset(seed=seed)
    chosen, class_names, new_label = subset.choose(labels, first.class_names)
    plain = views == "plain" or any(cache.encoder["views"] != first.encoder["views"] for cache in caches)
    parts, content = {}, {}
    for name, own in usable.items():
        kept = chosen[name]
        if not len(kept):
            raise UserError(f"{first.path}: no usable {name} rows are left; choose other --classes or a larger --limit")
        features = joined([features_of(cache, name, rows[kept]) for cache, rows in zip(caches, own, strict=True)])
        split, rows_here = first.splits[name], own[0][kept]
        parts[name] = SplitRows(
            features.view(0) if plain else features,
            new_label[labels[name][kept]],
            tuple(split.ids[row] for row in rows_here.tolist()),
        )
        content[name] = split.content[rows_here]
    notes = [*left_out(caches, matched), *(excluded.notes if excluded else ()), *leaks(content)]
    notes += [] if rows_only else told_features(caches, plain)
    n_bytes = sum(part.features.n_bytes for part in parts.values())
    if rows_only:
        pass
    elif n_bytes <= KEPT_BYTES:
        parts = {name: replace(part, features=part.features.kept()) for name, part in parts.items()}
    else:
        notes.append(
            f"features take {n_bytes / 2**30:.1f} GiB in memory, more than {KEPT_BYTES / 2**30:g}: they are read from "
            "the file each time that a head goes through them"
        )
    return UncarvedRows(
        class_names=class_names,
        train=parts["train"],
        val=parts.get("val"),
        test=parts["test"],
        notes=tuple(notes),
        subset=subset.to_json(),
        val_fraction=val_fraction,
        excluded=excluded.record if excluded else None,
    ).carved(seed)


def carve_validation(y: Labels, *, fraction: float = 0.1, seed: int = 0) -> tuple[Labels, Labels]:
    """Row numbers for training and for validation, ascending int64, a random `fraction` of each class for validation.

    y is int64 (N,). The number is rounded class by class, at least one and never all: a class of one row has none in
    validation. Raises UsageError for a fraction outside (0, 1), and UserError where no class has two rows.
    """
    if not 0 < fraction < 1:
        raise UsageError(f"the validation fraction is {fraction}, expected more than 0 and less than 1")
    if np.bincount(y).max(initial=0) < 2:
        raise UserError("no class has two training rows, of which validation would take one: add images or a val split")
    return carve(y, fraction=fraction, seed=seed)


def rows_fingerprint(*splits: SplitRows) -> str:
    """`hashing.fingerprint` of ``[[ids, labels], ...]``, without the whole JSON in memory."""
    digest = hashlib.blake2b(digest_size=hashing.DIGEST_SIZE)
    for text in _spelled(splits):
        digest.update(text.encode())
    return digest.hexdigest()


def _spelled(splits: Sequence[SplitRows]) -> Iterator[str]:
    """The canonical JSON, piece by piece."""
    yield "["
    for number, split in enumerate(splits):
        yield ",[[" if number else "[["
        yield from _spelled_list(split.ids)
        yield "],["
        yield from _spelled_list(split.labels)
        yield "]]"
    yield "]"


def _spelled_list(values: tuple[str, ...] | Labels) -> Iterator[str]:
    for start in range(0, len(values), _DIGESTED_AT_ONCE):
        part = values[start : start + _DIGESTED_AT_ONCE]
        told = hashing.canonical_json(part.tolist() if isinstance(part, np.ndarray) else part)
        yield ("," if start else "") + told[1:-1]
