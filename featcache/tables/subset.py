"""Which rows of a data set to use: by class, by number, by fraction; the same rules at embedding and at fitting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from featcache.common.errors import UsageError, UserError, one_of

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Subset:
    """A choice of rows.

    The rules apply in this order: ``classes`` in every split, ``limit`` in the splits that it names, then ``fraction``
    and ``per_class`` in train alone. Rows keep their order.

    Attributes:
        classes: names of the classes to keep, in the order of their new labels; empty keeps all.
        per_class: so many training rows of each class.
        fraction: this share of the training rows of each class, in (0, 1].
        limit: the first so many rows of a split, by split.
        take: whether ``per_class`` and ``fraction`` take the first rows of a class or random ones.
        seed: of the random choice.

    Raises:
        UsageError: a number is out of range.
    """

    classes: tuple[str, ...] = ()
    per_class: int | None = None
    fraction: float | None = None
    limit: Mapping[str, int] = field(default_factory=dict)
    take: Literal["first", "random"] = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.per_class is not None and self.per_class < 1:
            raise UsageError(f"--per-class {self.per_class}: expected a whole number of at least 1")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise UsageError(f"--fraction {self.fraction:g}: expected a number above 0 and at most 1")
        if self.per_class is not None and self.fraction is not None:
            raise UsageError("--per-class and --fraction exclude one another: give one of them")
        for split, count in self.limit.items():
            if count < 1:
                raise UsageError(f"--limit {split}={count}: expected a whole number of at least 1")
        if self.classes and (len(self.classes) < 2 or len(set(self.classes)) < len(self.classes)):
            raise UsageError(f"--classes {','.join(self.classes)}: expected two or more different class names")

    def to_json(self) -> dict[str, Any]:
        """What was asked for, without what was not; the seed only where it decides something."""
        asked = {key: value for key, value in asdict(self).items() if value not in (None, (), {})}
        if not (self.per_class or self.fraction):
            asked.pop("take")
        if asked.get("take") != "random":
            asked.pop("seed", None)
        return asked

    def choose(
        self, labels: Mapping[str, NDArray[np.int64]], class_names: Sequence[str]
    ) -> tuple[dict[str, Indices], tuple[str, ...], NDArray[np.int64]]:
        """Apply the rules to the labels of each split.

        Args:
            labels: (N,) int64 by split; -1 is unlabelled.
            class_names: the name of each label.

        Returns:
            The kept rows' indices by split, ascending; the names of the classes kept; and an array that maps each old
            label to its new one (-1 where dropped), the last entry serving the label -1.

        Raises:
            UsageError: a class or split is unknown.
            UserError: a class has too few rows.
        """
        for split in self.limit:
            if split not in labels:
                raise one_of("split in --limit", split, list(labels))
        for name in self.classes:
            if name not in class_names:
                raise one_of("class in --classes", name, list(class_names))
        kept_names = self.classes or tuple(class_names)
        new_label = np.full(len(class_names) + 1, -1, dtype=np.int64)
        new_label[[list(class_names).index(name) for name in kept_names]] = np.arange(len(kept_names))
        chosen = {}
        for split, old in labels.items():
            rows = np.flatnonzero(new_label[old] >= 0) if self.classes else np.arange(len(old))
            rows = rows[: self.limit.get(split)]
            if split == "train" and (self.per_class or self.fraction):
                rows = self._thin(rows, new_label[old[rows]], kept_names)
            chosen[split] = rows
        if "train" in labels:
            counts = np.bincount(new_label[labels["train"][chosen["train"]]] + 1, minlength=len(kept_names) + 1)[1:]
            for name, count in zip(kept_names, counts, strict=True):
                if count == 0:
                    mend = "choose other --classes or a larger --limit"
                    raise UserError(f"class {name!r} has no training images left: {mend}")
        return chosen, kept_names, new_label

    def _thin(self, rows: Indices, labels: NDArray[np.int64], class_names: Sequence[str]) -> Indices:
        rng = np.random.default_rng(self.seed)
        kept = []
        for label, name in enumerate(class_names):
            own = rows[labels == label]
            wanted = self.per_class or max(1, round((self.fraction or 1) * len(own)))
            if self.per_class and wanted > len(own):
                mend = f"ask for at most {len(own)}, or choose other --classes"
                raise UserError(f"--per-class {wanted}: class {name!r} has {len(own)} training images; {mend}")
            kept.append(own[:wanted] if self.take == "first" else rng.permutation(own)[:wanted])
        return np.sort(np.concatenate(kept))


def row_numbers(rows: Sequence[int] | NDArray[np.int64] | NDArray[np.bool_], n_rows: int, *, of: str) -> Indices:
    """Rows that were asked for, as their numbers.

    Args:
        rows: (n,) integers from 0 to ``n_rows`` - 1, or (n_rows,) booleans, true for the rows that are wanted.
        n_rows: how many rows there are.
        of: what they are rows of, for a message.

    Raises:
        IndexError: there is no such row, or another number of booleans.
        TypeError: neither integers nor booleans.
    """
    rows = np.asarray(rows)
    if rows.dtype == bool:
        if rows.shape != (n_rows,):
            raise IndexError(f"{of} has {n_rows:,} rows; asked for by booleans of shape {rows.shape}")
        return np.flatnonzero(rows)
    if rows.ndim != 1 or (rows.dtype.kind not in "iu" and len(rows)):
        raise TypeError(f"rows are {rows.dtype} of shape {rows.shape}; expected (n,) integers or (N,) booleans")
    if len(rows) and (rows.min() < 0 or rows.max() >= n_rows):
        raise IndexError(f"{of} has {n_rows:,} rows; asked for rows {rows.min()} to {rows.max()}")
    return rows.astype(np.int64)


def carve(labels: NDArray[np.int64], *, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Split rows in two, stratified by label.

    scikit-learn's stratified splits refuse a part with fewer rows than classes; this one takes at least one row of each
    class that has two.

    Args:
        labels: (N,) int64.
        fraction: the share of each class that goes to the second part, rounded to whole rows.
        seed: of the choice.

    Returns:
        The indices of the rows that stay and of those carved off, both ascending.
    """
    rng = np.random.default_rng(seed)
    carved = []
    by_label = np.argsort(labels, kind="stable")
    _, starts = np.unique(labels[by_label], return_index=True)
    for rows in np.split(by_label, starts[1:]):
        own = rng.permutation(rows)
        count = min(max(round(fraction * len(own)), 1), len(own) - 1)
        carved.append(own[:count])
    second = np.sort(np.concatenate(carved))
    return np.setdiff1d(np.arange(len(labels)), second), second
