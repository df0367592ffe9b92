"""What a training script does with a cache: a DataLoader's workers read it.

For a forked process: one in which inference engines have started threads is none to fork workers from.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from featcache.cache.cache_file import Cache
from featcache.cache.split import CachedSplit


class Rows(torch.utils.data.Dataset):
    """What a training loop over cached maps looks like."""

    def __init__(self, split: CachedSplit) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, rows: list[int]) -> list[np.ndarray]:
        return list(self.split.load(np.array(rows)))


def read_by_workers(path: Path, context: str) -> None:
    """Compare what workers, started by "fork" or "spawn", read of a cache with what this process reads."""
    split = Cache.open(path).splits["train"]
    expected = split.load()  # opens it here first, so that workers inherit what is open
    loader = torch.utils.data.DataLoader(
        Rows(split), batch_size=7, shuffle=False, num_workers=2, multiprocessing_context=context
    )
    np.testing.assert_array_equal(torch.cat(list(loader)).numpy(), expected)
