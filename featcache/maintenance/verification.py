"""Verify a cache: every block against its checksum, and its canary against today's features."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from featcache.cache import file_format
from featcache.cache.cache_file import Cache
from featcache.cache.damage import Damage
from featcache.cache.split import CachedSplit
from featcache.common.errors import CacheError, UserError

if TYPE_CHECKING:
    import torch

    from featcache.cache.canary import Canary

#: At least so many bytes of features, and a hundredth of a split, are read between two reports of progress.
_CHUNK_BYTES = 1 << 26
#: Pictures are padded to the batch that the cache was made with, but never to more than this, whatever a file says.
_MAX_BATCH = 256


@dataclass(frozen=True)
class Verified:
    """What reading a cache from end to end came to.

    Attributes:
        damages: sentences on what is damaged; blocks that follow one another are told as one.
        n_bytes: read.
        seconds: that took.
    """

    damages: tuple[str, ...]
    n_bytes: int
    seconds: float


def verify(cache: Cache, *, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Verified:
    """Compare every block of every data set with its checksum.

    Args:
        cache: a finished one.
        on_progress: called with the bytes read and all bytes.
    """
    begun = time.perf_counter()
    sizes = {
        name: sum(split.stored[part].n_bytes for part in file_format.CHECKED) for name, split in cache.splits.items()
    }
    total, done = sum(sizes.values()), 0
    told: list[str] = []
    for name, split in cache.splits.items():
        n_blocks = len(split.checksums)
        step = max(1, n_blocks // 100, _CHUNK_BYTES // (split.block_rows * split.stored["features"].row_bytes))
        found: list[Damage] = []
        unread: list[str] = []
        for start in range(0, n_blocks, step):
            blocks = range(start, min(start + step, n_blocks))
            try:
                found += split.damages(blocks)
            except CacheError as error:  # the file system can't read them
                unread.append(error.reason)
            on_progress(done + sizes[name] * blocks.stop // n_blocks, total)
        done += sizes[name]
        told += map(str, _joined(found))
        told += dict.fromkeys(unread)
        if not found and not unread:
            told += _faults(cache, split)
    return Verified(tuple(told), total, time.perf_counter() - begun)


def _joined(damages: Iterable[Damage]) -> list[Damage]:
    """Blocks of a data set that follow one another, as one."""
    joined = []
    for data_set, each in groupby(sorted(damages, key=lambda d: (d.data_set, d.start)), key=lambda d: d.data_set):
        runs: list[Damage] = []
        for damage in each:
            if runs and runs[-1].stop == damage.start:
                runs[-1] = Damage(damage.split, data_set, runs[-1].start, damage.stop)
            else:
                runs.append(damage)
        joined += runs
    return joined


def _faults(cache: Cache, split: CachedSplit) -> list[str]:
    """What is wrong with values that match their checksums."""
    faults = []
    for part in ("ids", "labels"):
        try:
            getattr(split, part)
        except CacheError as error:
            faults.append(error.reason)
    return faults


def todays_canary(cache: Cache, *, weights: str | None = None, device: torch.device) -> Canary:
    """What today's stack makes of the shipped pictures with a cache's encoder.

    Args:
        cache: tells the encoder, and the batch that it was used with.
        weights: a file, for encoders whose weights came from one; recorded names serve otherwise.
        device: to compute on.

    Raises:
        UserError: that encoder can't be had here; the message says why.
    """
    from featcache.embedding.rebuild_encoder import rebuilt

    is_random = "seed" in cache.encoder["weights"]
    embedding = rebuilt(
        cache.encoder,
        recorded=cache.provenance["weights"],
        weights=None if is_random else weights,
        device=device,
        batch_size=min(max(1, cache.provenance["batch"]), _MAX_BATCH),
        cache_dir=cache.path.parent,
    )
    shapes = {split.row_shape for split in cache.splits.values()}
    if shapes != {embedding.row_shape}:
        raise UserError(f"its features are of shape {min(shapes)}, and the encoder's of {embedding.row_shape}")
    try:
        return embedding.canary()
    except (RuntimeError, MemoryError, TypeError, ValueError) as error:
        raise UserError(f"the pictures cannot be embedded ({' '.join(str(error).split())[:160]})") from error
