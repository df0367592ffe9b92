"""Rows of a cache as batches of images: decoded once or anew, in the order asked for, and never other ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw

from featcache.cache.cache_file import Cache
from featcache.common.errors import UserError
from featcache.embedding.job import Embedding
from finetune import image_source
from finetune.cached_rows import TuningRows, backbone_of, tuning_rows
from heads.rows import load_rows

CPU = torch.device("cpu")


def tuning(cache: Cache, **settings: object) -> TuningRows:
    rows = load_rows(cache, val_fraction=0.2, rows_only=True)
    return tuning_rows(cache, rows, device=CPU, **settings)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_what_was_embedded(cache: Cache, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """Kept or streamed, the trunk makes of them the features of the cache, whichever rows are asked for."""
    trunk = backbone_of(cache).staged.trunk()
    features = load_rows(cache, val_fraction=0.2)
    for kept_bytes in (image_source.KEPT_BYTES, 0):
        monkeypatch.setattr(image_source, "KEPT_BYTES", kept_bytes)
        made = tuning(cache, workers=workers)
        for part in ("train", "val", "test"):
            source, expected = getattr(made, part), getattr(features, part)
            assert source.fits == (kept_bytes > 0)
            np.testing.assert_array_equal(source.labels, expected.labels)
            order = np.random.default_rng(0).permutation(len(source.labels))
            groups = np.array_split(order, 3)
            for rows, images in zip(groups, source.batches(groups, augment=True), strict=True):
                with torch.inference_mode():
                    found = trunk(images).numpy()
                np.testing.assert_allclose(found, expected.take(rows).features.load(), rtol=2e-3, atol=2e-3)


def test_rows_of_two_splits_are_joined_in_order(
    make_folder: Callable[..., Path], embed: Callable[..., Embedding], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the set has a validation split of its own, and grey images among coloured ones."""
    root = make_folder({"train": {"red": 5, "green": 5}, "val": {"red": 3, "green": 3}, "test": {"red": 3, "green": 3}})
    import PIL.Image

    grey = root / "train" / "red" / "000.jpg"
    PIL.Image.open(grey).convert("L").save(grey)
    cache = embed(root).run().cache
    made = tuning(cache)
    apart = torch.cat(
        [
            images
            for part in (made.train, made.val)
            for images in part.batches([np.arange(len(part.rows))], augment=False)
        ]
    )
    order = np.random.default_rng(1).permutation(16)
    for kept_bytes in (image_source.KEPT_BYTES, 0):
        monkeypatch.setattr(image_source, "KEPT_BYTES", kept_bytes)
        both = made.train.joined(made.val)
        assert set(both.splits) == {"train", "val"}
        np.testing.assert_array_equal(both.labels, made.rows.dev.labels)
        found = torch.cat(list(both.batches(np.array_split(order, 3), augment=False)))
        assert torch.equal(found, apart[torch.from_numpy(order)])


def test_an_image_that_changed_or_is_gone_is_refused(folder: Path, cache: Cache) -> None:
    path = folder / "train" / "red" / "003.jpg"
    draw(path, hue=2, seed=99)
    made = tuning(cache)
    with pytest.raises(UserError, match=r"changed since it was embedded: run the same bin/embed again"):
        _ = made.train.kept, made.val.kept
    path.unlink()
    with pytest.raises(UserError, match=r"train/red/003.jpg .* is no longer in the data set"):
        tuning(cache)
