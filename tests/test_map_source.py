"""Cached maps as batches: checked, in order, in the memory order of the stages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from making import flip
from trunks import CPU
from tuning import torchvision_model

from featcache.cache.cache_file import Cache
from featcache.common.errors import CacheError
from finetune import map_source
from finetune.map_source import CachedMaps, MapSource
from finetune.settings import Settings
from finetune.trunk_cost import trunk_costs


@pytest.mark.parametrize("kept_bytes", [map_source.KEPT_BYTES, 0])
def test_maps_are_checked_and_come_in_order(cache: Cache, monkeypatch: pytest.MonkeyPatch, kept_bytes: int) -> None:
    """Kept or mapped, of one part or of two joined; a damaged block is an error."""
    monkeypatch.setattr(map_source, "KEPT_BYTES", kept_bytes)
    split = cache.splits["train"]
    numbers = np.random.default_rng(0).permutation(40)
    first, second = (
        MapSource(
            parts=(CachedMaps(split=split, rows=rows, has_views=False),),
            labels=split.labels[rows],
            cut=5,
            n_views=1,
            order=(0, 1),
            device=CPU,
        )
        for rows in (numbers[:25], numbers[25:])
    )
    both = first.joined(second)
    np.testing.assert_array_equal(both.labels, split.labels[numbers])
    groups = np.array_split(np.random.default_rng(1).permutation(40), 3)
    for group, maps in zip(groups, both.batches(groups, augment=True), strict=True):
        assert maps.dtype == torch.float32
        np.testing.assert_array_equal(maps.numpy(), split.load(numbers[group]))
    flip(cache, "train", "features", 3)
    (part,) = first.parts
    anew = replace(part, split=Cache.open(cache.path).splits["train"])
    damaged = replace(first, parts=(replace(anew, rows=numbers),), labels=split.labels[numbers])
    with pytest.raises(CacheError, match="do not match their checksum"):
        next(damaged.batches([np.array([0])], augment=False))


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny"])
def test_maps_keep_the_memory_order_of_the_stages(name: str) -> None:
    """Without it the stages after the cut would round differently."""
    staged = torchvision_model(name, 32)
    settings = Settings()
    cuts = [1, 2, len(staged.stages)]
    costs = trunk_costs(staged, cuts, side=32, settings=settings, device=CPU)
    assert 0 < costs[1].seconds < costs[2].seconds
    images = torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for cut in cuts:
            maps = staged.part(0, cut)(images)
            source = MapSource(
                parts=(), labels=np.zeros(0, np.int64), cut=cut, n_views=1, order=costs[cut].order, device=CPU
            )
            back = source._in_order(torch.from_numpy(np.ascontiguousarray(maps.numpy())))
            assert back.stride() == maps.stride()
            assert torch.equal(staged.part(cut, None)(back), staged.model(images))
