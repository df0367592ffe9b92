"""A cache in; the blocks that do not match their checksums, and what today's stack makes of its canary, out."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from featcache import layout
from featcache.cache import Cache
from featcache.cached_split import CachedSplit
from featcache.damage import Damage
from featcache.errors import CacheError, UserError
from featcache.upkeep.differences import differing_fields

if TYPE_CHECKING:
    import torch

    from featcache.canary import Canary
    from featcache.embedding import Embedding

#: At least so many bytes of features, and a hundredth of a split, are read between two reports of progress.
_CHUNK_BYTES = 1 << 26
#: Pictures are padded to the batch that the cache was made with, but never to more than this, whatever a file says.
_MAX_BATCH = 256
#: How torchvision spells an entry of its weights.
_ENTRY = re.compile(r"\w+_Weights\.(\w+)")


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
    sizes = {name: sum(split.stored[part].n_bytes for part in layout.CHECKED) for name, split in cache.splits.items()}
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
                unread.append(_without_path(cache, error))
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
            faults.append(_without_path(cache, error))
    return faults


def _without_path(cache: Cache, error: CacheError) -> str:
    return str(error).removeprefix(f"{cache.path}: ")


def todays_canary(cache: Cache, *, weights: str | None = None, device: torch.device) -> Canary:
    """What today's stack makes of the shipped pictures with a cache's encoder.

    Args:
        cache: tells the encoder, and the batch that it was used with.
        weights: a file, for encoders whose weights came from one; recorded names serve otherwise.
        device: to compute on.

    Raises:
        UserError: that encoder can't be had here; the message says why.
    """
    embedding = _rebuilt(cache, weights, device)
    differing = differing_fields(cache.encoder, embedding.encoder)
    if differing:
        fields = "; ".join(
            f"{name} is {_told(now)} today, not {_told(then)}" for name, (then, now) in differing.items()
        )
        raise UserError(f"the encoder that can be had here is another one: {fields}")
    shapes = {split.row_shape for split in cache.splits.values()}
    if shapes != {embedding.row_shape}:
        raise UserError(f"its features are of shape {min(shapes)}, and the encoder's of {embedding.row_shape}")
    try:
        return embedding.canary()
    except (RuntimeError, MemoryError, TypeError, ValueError) as error:
        raise UserError(f"the pictures cannot be embedded ({' '.join(str(error).split())[:160]})") from error


def _rebuilt(cache: Cache, weights: str | None, device: torch.device) -> Embedding:
    from featcache.augmentation import Augmentation
    from featcache.backbones import load_backbone
    from featcache.datasets import ImageDataset
    from featcache.embedding import Embedding
    from featcache.engines.preparing import ENGINES, INT8, PRECISIONS, unavailable
    from featcache.preprocessing import Preprocessing

    encoder = cache.encoder
    precision, storage = encoder["precision"], encoder["storage"]
    engine = encoder["engine"]
    if precision == INT8:
        raise UserError("int8's ranges come from images of the data set, which are not in the file")
    if precision not in PRECISIONS or storage not in ("float16", "float32") or engine not in ENGINES:
        raise UserError(f"engine {engine!r}, precision {precision!r} and storage {storage!r} are not known here")
    if reason := unavailable(engine, precision, device):
        raise reason
    try:
        preprocessing = Preprocessing.from_json(encoder["preprocessing"])
        augmentation = Augmentation.from_json(encoder["views"]) if encoder["views"] else None
        seed = int(encoder["weights"].get("seed", 0))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"its encoder has fields that are not known here ({error})") from error
    backbone = load_backbone(
        encoder["backbone"],
        weights=_weights(cache, weights),
        seed=seed,
        image_size=preprocessing.image_size,
        resize=preprocessing.resize,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )
    return Embedding(
        dataset=ImageDataset("pictures", (), {}),
        backbone=backbone,
        cache_dir=cache.path.parent,
        cut=backbone.staged.cut_after(encoder["cut"]),
        storage=storage,
        engine=engine,
        precision=precision,
        device=device,
        batch_size=min(max(1, cache.provenance["batch"]), _MAX_BATCH),
        augmentation=augmentation,
    )


def _weights(cache: Cache, given: str | None) -> str | None:
    """What ``load_backbone`` takes; a name from the file never becomes a path."""
    name = cache.provenance["weights"]
    if "seed" in cache.encoder["weights"]:
        return "none"
    if given is not None:
        return given
    if entry := _ENTRY.fullmatch(name):
        return entry[1]
    if cache.encoder["backbone"] == "efficientnet_lite0" or name.startswith("timm/"):
        return None
    raise UserError(f"its weights came from a file, {name}: give it by --weights FILE")


def _told(value: Any) -> str:
    return value if isinstance(value, str) else layout.canonical_json(value)
