"""A file of ids, or an audit's ``findings.csv``, in; the rows of each split that are to be left out, out."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.cache import file_format
from featcache.common import hashing
from featcache.common.errors import UserError
from featcache.common.files import one_line, open_regular, size_of

#: What the column ``exclude`` says of a row that is to go; anything else keeps it.
YES = ("yes", "y", "true", "1", "x")

_MAX_BYTES = 1 << 30
_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Exclusion:
    """Rows to leave out, by id.

    Attributes:
        file: the name of the file that told them.
        ids: of rows of train and validation, named without a split.
        by_split: ids by the split that they were named with, test included.
    """

    file: str
    ids: frozenset[str] = frozenset()
    by_split: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids) + sum(map(len, self.by_split.values()))

    @property
    def fingerprint(self) -> str:
        """Of what is named, whatever the file's name or order."""
        return hashing.fingerprint([sorted(self.ids), {split: sorted(ids) for split, ids in self.by_split.items()}])

    def keeps(self, ids: Mapping[str, Sequence[str]]) -> Excluded:
        """Which rows of each split stay.

        A test row goes only where it was named with its split: what is scored does not change by the way.

        Raises:
            UserError: no row of any split is named.
        """
        kept, found = {}, set()
        for split, of_split in ids.items():
            named = self.by_split.get(split, frozenset()) | (self.ids if split != "test" else frozenset())
            hit = np.fromiter((name in named for name in of_split), bool, len(of_split))
            kept[split] = ~hit
            found |= {(split, of_split[row]) for row in np.flatnonzero(hit).tolist()}
        asked = {("", name) for name in self.ids} | {(s, name) for s, names in self.by_split.items() for name in names}
        found_ids = {name for _, name in found}
        missed = sorted(each for each in asked if each not in found and not (each[0] == "" and each[1] in found_ids))
        if not found:
            raise UserError(
                f"--exclude {self.file}: none of its {len(self):,} ids is a row here (first: {_told(missed[:1])}); "
                "expected ids of this cache, one a line, as bin/audit lists them"
            )
        n_rows = {split: int((~rows).sum()) for split, rows in kept.items()}
        told = ", ".join(f"{n:,} {split}" for split, n in n_rows.items() if n)
        notes = [f"left out by --exclude {self.file}: {told} rows"]
        if missed:
            only_test = [each for each in missed if each[0] == "" and each[1] in set(ids.get("test", ()))]
            unknown = [each for each in missed if each not in only_test]
            if unknown:
                notes.append(f"WARNING: {len(unknown):,} ids of {self.file} match no row: {_told(unknown)}")
            if only_test:
                notes.append(
                    f"{len(only_test):,} ids of {self.file} are test rows, which stay unless a column split says test: "
                    f"{_told(only_test)}"
                )
        record = {"file": self.file, "fingerprint": self.fingerprint, "rows": n_rows}
        return Excluded(kept=kept, notes=tuple(notes), record=record)


@dataclass(frozen=True, eq=False, kw_only=True)
class Excluded:
    """What an exclusion came to: by split which rows stay, bool (N,); sentences for the user; and what is recorded."""

    kept: Mapping[str, NDArray[np.bool_]]
    notes: tuple[str, ...]
    record: dict[str, Any]


def read_exclusion(path: Path) -> Exclusion:
    """Read a list of ids.

    The file is UTF-8 text with an id on each line, or a CSV table whose first line names the columns: ``id``; maybe
    ``split``, which an id is then looked for in, and maybe ``exclude``, which must say yes for a row to go.
    ``findings.csv`` of ``bin/audit`` is such a table.

    Raises:
        UserError: the file can't be read, is too large or no text, or names nothing.
    """
    try:
        with open_regular(path) as file:
            if size_of(file) > _MAX_BYTES:
                raise UserError(f"--exclude {path}: {size_of(file):,} bytes, expected a list of ids below 1 GiB")
            text = file.read(_MAX_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise UserError(
            f"--exclude {path}: cannot be read ({error.strerror or one_line(error)}); expected a file of ids"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"--exclude {path}: is no UTF-8 text; expected an id on each line, or a CSV table") from error
    lines = [line.removesuffix("\r") for line in text.split("\n")]  # other ends of lines may be in names
    columns = next(csv.reader(lines[:1]), [])
    if "id" in columns:
        return _table(path, text, columns)
    ids = frozenset(line for line in lines if line.strip())
    if not ids:
        raise UserError(f"--exclude {path}: names no rows; expected an id on each line, or a CSV table with column id")
    return Exclusion(file=path.name, ids=ids)


def _table(path: Path, text: str, columns: list[str]) -> Exclusion:
    ids: set[str] = set()
    by_split: dict[str, set[str]] = {}
    try:
        for row in csv.DictReader(io.StringIO(text, newline="")):
            if not row["id"] or ("exclude" in columns and (row["exclude"] or "").strip().lower() not in YES):
                continue
            split = row.get("split") or ""
            if split not in ("", *file_format.SPLITS):
                known = ", ".join(file_format.SPLITS)
                raise UserError(f"--exclude {path}: the split {one_line(split)!r} of {one_line(row['id'])!r}; "
                                f"expected one of {known}")  # fmt: skip
            (by_split.setdefault(split, set()) if split else ids).add(row["id"])
    except csv.Error as error:
        raise UserError(f"--exclude {path}: is no CSV table ({one_line(error)})") from error
    if not ids and not by_split:
        why = "no row of it says yes in the column exclude" if "exclude" in columns else "it has no rows"
        raise UserError(f"--exclude {path}: {why}, so that there is nothing to leave out; leave out the flag")
    return Exclusion(
        file=path.name, ids=frozenset(ids), by_split={split: frozenset(names) for split, names in by_split.items()}
    )


def _told(named: Sequence[tuple[str, str]]) -> str:
    more = f" and {len(named) - _NAMED:,} more" if len(named) > _NAMED else ""
    return ", ".join(f"{split} {name}" if split else name for split, name in named[:_NAMED]) + more
