"""Preprocessing: the weights' own, as torchvision and timm do it image by image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import get_model_weights

from featcache.backbones import load_backbone
from featcache.errors import UsageError
from featcache.preprocessing import Preprocessing


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    """Smooth shapes with edges, 200 x 300."""
    y, x = np.mgrid[0:200, 0:300] / 100.0
    waves = [np.sin(3 * x + 2 * y), np.cos(5 * y) * np.sin(x), np.sign(np.sin(6 * x * y))]
    return np.uint8(np.stack(waves, axis=-1) * 120 + 128)


def own(name: str) -> tuple[Preprocessing, object]:
    transform = get_model_weights(name).DEFAULT.transforms()
    preprocessing = Preprocessing(
        image_size=transform.crop_size[0],
        resize_size=transform.resize_size[0],
        interpolation=transform.interpolation.value,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
    )
    return preprocessing, transform


@pytest.mark.parametrize(
    ("name", "levels"),
    [("resnet18", 1), ("vgg16", 1), ("vit_b_16", 1), ("efficientnet_b0", 2), ("maxvit_t", 2), ("swin_t", 2)],
)
def test_equals_the_weights_own_transform(photograph: np.ndarray, name: str, levels: int) -> None:
    preprocessing, transform = own(name)
    ours = preprocessing.normalise(preprocessing.fit([photograph]))[0]
    theirs = transform(Image.fromarray(photograph))
    grey_levels = (ours - theirs).abs() * torch.tensor(preprocessing.std).view(3, 1, 1) * 255
    assert ours.shape == theirs.shape
    assert grey_levels.max() <= levels + 1e-3


def test_resnet18_is_loaded_with_that_preprocessing() -> None:
    assert load_backbone("resnet18", weights="none").preprocessing == own("resnet18")[0]


def test_a_stack_is_fitted_like_its_images(photograph: np.ndarray) -> None:
    preprocessing, _ = own("efficientnet_b0")
    stack = np.stack([photograph, photograph[::-1]])
    assert torch.equal(preprocessing.fit(stack), preprocessing.fit(list(stack)))


def test_grey_is_resized_once_and_becomes_three_equal_channels(photograph: np.ndarray) -> None:
    preprocessing, _ = own("resnet18")
    grey = photograph[..., 0]
    fitted = preprocessing.fit(grey[None])
    assert fitted.shape == (1, 1, 224, 224)
    as_rgb = preprocessing.fit([np.repeat(grey[..., None], 3, axis=-1)])
    assert torch.equal(preprocessing.normalise(fitted), preprocessing.normalise(as_rgb))
    assert preprocessing.fit([grey, photograph]).shape == (2, 3, 224, 224)


def test_squash_sees_the_margins_that_crop_cuts_off() -> None:
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, :8] = 255
    crop = Preprocessing(image_size=10, resize_size=10, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1))
    assert crop.fit([wide]).max() == 0
    assert crop.override(resize="squash").fit([wide])[0, 0, 5, 0] == 255


def test_overrides() -> None:
    preprocessing, _ = own("resnet18")
    smaller = preprocessing.override(image_size=112, mean=(0, 0, 0), std=(1, 1, 1))
    assert (smaller.image_size, smaller.resize_size, smaller.mean, smaller.std) == (112, 128, (0, 0, 0), (1, 1, 1))
    assert Preprocessing.from_json(smaller.to_json()) == smaller
    with pytest.raises(UsageError, match="--image-size 0: expected a whole number"):
        preprocessing.override(image_size=0)
    with pytest.raises(UsageError, match="--mean 0.5: expected 3 numbers"):
        preprocessing.override(mean=(0.5,))
    with pytest.raises(UsageError, match="--std 0,1,1: expected numbers above 0"):
        preprocessing.override(std=(0, 1, 1))
