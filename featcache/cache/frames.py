"""The rows of a cached split by column: as lists, or as a pandas DataFrame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.cache.file_format import status_name
from featcache.common.errors import UserError, missing_extra

if TYPE_CHECKING:
    import pandas

    from featcache.cache.split import CachedSplit

COLUMNS = ("row", "id", "label", "class", "status", "content")


def columns(split: CachedSplit) -> dict[str, list[Any]]:
    """The columns of ``COLUMNS``, a value a row: see ``featcache.maintenance.export.export``."""
    labels = split.labels.tolist()
    names = dict(enumerate(split.class_names))
    content = [row.tobytes().hex() for row in split.content]
    each = (
        list(range(len(split))),
        list(split.ids),
        labels,
        [names.get(label, "") for label in labels],
        [status_name(status) for status in split.status.tolist()],
        content,
    )
    return dict(zip(COLUMNS, each, strict=True))


def data_frame(split: CachedSplit, *, features: bool = False) -> pandas.DataFrame:
    """All rows, damaged ones and those without a label included; see ``CachedSplit.to_pandas``.

    Raises:
        UserError: pandas is not installed, or ``features`` were asked for and a row's are no vector.
        CacheError: a block does not match its checksum.
    """
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise missing_extra("pandas", "pandas") from error
    if features and len(split.row_shape) != 1:
        shape = " x ".join(map(str, split.row_shape))
        raise UserError(f"a row of {split.name} has {shape} features; a table takes vectors: read them with load()")
    told = columns(split)
    frame = pd.DataFrame(told, index=pd.Index(told["id"], name="id"), columns=["label", "class", "status", "content"])
    if not features:
        return frame
    names = [f"feature_{i}" for i in range(split.row_shape[0])]
    values = split.load()
    values[split.status != 0] = np.nan
    return pd.concat([frame, pd.DataFrame(values, index=frame.index, columns=names)], axis=1)
