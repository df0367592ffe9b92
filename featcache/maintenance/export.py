"""Export a cache as a folder of plain files: features as .npy, rows as .csv or .parquet, the encoder as JSON.

Names of files come from the splits alone, never from what a cache holds.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from featcache.cache.cache_file import Cache
from featcache.cache.frames import COLUMNS, columns
from featcache.cache.split import CachedSplit
from featcache.common.disk import explained, publish_folder
from featcache.common.errors import UserError, missing_extra


@dataclass(frozen=True)
class Exported:
    """What was written: ``files`` in ``folder``, ``n_bytes`` in all, ``rows`` of all splits.

    The folder's name has a number if another process took the one that was asked for.
    """

    folder: Path
    files: tuple[str, ...]
    n_bytes: int
    rows: int


def export(
    cache: Cache,
    folder: Path,
    *,
    table: Literal["csv", "parquet"] = "csv",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    """Write a cache's splits as plain files; all of them or none.

    Args:
        cache: a finished one.
        folder: that is not there yet, or is empty.
        table: the format of the rows' table. In it ``row`` is the index into the features; ``label`` is -1 and
            ``class`` empty where there is none; ``status`` is ``ok``, or says why the row has no features, which are
            zeros then; ``content`` is the image's digest in hex.
        on_progress: called with the rows whose features are written and all rows.

    Raises:
        UserError: the folder holds something or can't be written, the disk is full, or pyarrow is missing.
        CacheError: a block does not match its checksum.
    """
    write_table = _write_csv if table == "csv" else _parquet_writer()
    with explained(folder.parent):
        if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
            raise UserError(f"{folder}: is there already; name a folder that is not, or is empty")
    written: dict[str, int] = {}

    def write(temporary: Path) -> None:
        _write_all(cache, temporary, table, write_table, on_progress)
        written.update((path.name, path.stat().st_size) for path in sorted(temporary.iterdir()))

    folder = publish_folder(folder.resolve(), write)
    rows = sum(map(len, cache.splits.values()))
    return Exported(folder, tuple(written), sum(written.values()), rows)


def _write_all(
    cache: Cache,
    folder: Path,
    table: str,
    write_table: Callable[[CachedSplit, Path], None],
    on_progress: Callable[[int, int], None],
) -> None:
    total, before = sum(map(len, cache.splits.values())), 0
    for name, split in cache.splits.items():
        for done in _write_features(split, folder / f"{name}-features.npy"):
            on_progress(before + done, total)
        before += len(split)
        write_table(split, folder / f"{name}.{table}")
    told = {
        "encoder": cache.encoder,
        "encoder_fingerprint": cache.encoder_fingerprint,
        "class_names": list(cache.class_names),
        "provenance": cache.provenance,
    }
    (folder / "encoder.json").write_text(json.dumps(told, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")


def _write_features(split: CachedSplit, path: Path) -> Iterator[int]:
    """Write block by block, each compared with its checksum; gives the rows done.

    Not through a map: on a full disk that ends the process instead of raising.
    """
    stored = split.stored["features"]
    header: dict[str, Any] = {"descr": stored.dtype.str, "fortran_order": False, "shape": stored.shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block, values in split.blocks("features"):
            file.write(values.data)
            yield split.rows_of(block)[1]


def _write_csv(split: CachedSplit, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)  # lines end in CR LF: older writers would leave a CR in an id unquoted otherwise
        writer.writerow(COLUMNS)
        writer.writerows(zip(*columns(split).values(), strict=True))


def _parquet_writer() -> Callable[[CachedSplit, Path], None]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise missing_extra("pyarrow", "parquet") from error

    def write(split: CachedSplit, path: Path) -> None:
        with path.open("wb") as file:
            parquet.write_table(pyarrow.table(columns(split)), file)

    return write
