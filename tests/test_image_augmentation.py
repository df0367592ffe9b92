"""Augmentation of batches on the device: sizes, ranges, seeds, and that each image goes its own way."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from finetune.image_augmentation import augmented
from finetune.settings import Augment


def ramps(n: int, channels: int = 3, side: int = 32) -> torch.Tensor:
    """Images that grow brighter to the right, the same for all."""
    row = torch.arange(side, dtype=torch.uint8) * (224 // side) + 16
    return row.expand(n, channels, side, side).clone()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augment", get_args(Augment))
def test_presets_keep_shape_and_type_and_follow_the_seed(augment: Augment, channels: int) -> None:
    images = ramps(12, channels).to(memory_format=torch.channels_last)
    before = images.clone()
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(augmented(images, augment))
    assert found[0].shape == images.shape
    assert found[0].dtype == torch.uint8
    assert torch.equal(images, before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2]) == (augment == "none")
    if augment != "none":
        assert len({bytes(image.contiguous().numpy().tobytes()) for image in found[0]}) > 1


def test_flip_mirrors_half_of_the_images() -> None:
    torch.manual_seed(0)
    images = ramps(400)
    found = augmented(images, "flip")
    mirrored = (found == images.flip(3)).flatten(1).all(1)
    kept = (found == images).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert 160 < mirrored.sum() < 240


def test_crop_shifts_by_at_most_an_eighth() -> None:
    torch.manual_seed(0)
    images = torch.zeros(300, 1, 32, 32, dtype=torch.uint8)
    images[:, :, 16, 16] = 255
    found = augmented(images, "crop")
    spots = (found[:, 0] == 255).nonzero()
    assert len(spots) == 300
    rows, columns = spots[:, 1], spots[:, 2]
    assert set(rows.tolist()) == set(range(12, 21))
    assert set(columns.tolist()) <= set(range(11, 21))


def test_standard_shows_a_part_enlarged() -> None:
    torch.manual_seed(0)
    images = ramps(200, 1)
    found = augmented(images, "standard").float()
    spans = (found[:, 0, 16, -1] - found[:, 0, 16, 0]).abs() / (images[0, 0, 16, -1] - images[0, 0, 16, 0])
    assert spans.min() > 0.35 * 0.75  # the narrowest part, less the contrast that jitter takes
    assert spans.max() < 1.3
    assert spans.mean() < 0.95


def test_grey_and_coloured_images_are_changed_alike() -> None:
    for augment in ("flip", "crop", "standard"):
        torch.manual_seed(1)
        grey = augmented(ramps(8, 1), augment)
        torch.manual_seed(1)
        coloured = augmented(ramps(8, 3), augment)
        assert (coloured.int() - grey.int()).abs().max() <= 1
