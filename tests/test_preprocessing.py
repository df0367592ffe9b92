"""Preprocessing: the weights' own, as torchvision and timm do it image by image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import get_model_weights
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transform

from featcache.common import hashing
from featcache.common.errors import UsageError
from featcache.models import backbones
from featcache.models.backbones import load_backbone
from featcache.sources import preprocessing as preprocessing_module
from featcache.sources.augmented_views import Augmentation
from featcache.sources.decoding import decode
from featcache.sources.preprocessing import RESIZES, Preprocessing


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


#: By weights family: as close to the transform that the weights come with, on Pillow's images, as 8 bits allow.
FAMILIES = [
    ("alexnet", 1),
    ("vgg16", 1),
    ("resnet18", 1),
    ("resnet50", 1),
    ("densenet121", 1),
    ("mobilenet_v2", 1),
    ("mobilenet_v3_large", 1),
    ("shufflenet_v2_x1_0", 1),
    ("squeezenet1_1", 1),
    ("mnasnet1_0", 1),
    ("googlenet", 1),
    ("inception_v3", 1),
    ("efficientnet_b0", 2),
    ("efficientnet_v2_s", 1),
    ("regnet_y_400mf", 1),
    ("convnext_tiny", 1),
    ("vit_b_16", 1),
    ("swin_t", 2),
    ("swin_v2_t", 2),
    ("maxvit_t", 2),
]


def pictures(name: str) -> list[np.ndarray]:
    """Of one family, kinds of images: a photograph's shape both ways, tiny, thin, and large."""
    shapes = [(375, 500), (500, 333), (32, 32), (28, 28), (1, 1), (700, 90), (1200, 900)]
    rng = np.random.default_rng(len(name))
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


def grey_levels(ours: torch.Tensor, theirs: torch.Tensor, preprocessing: Preprocessing) -> float:
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs() * torch.tensor(preprocessing.std).view(3, 1, 1) * 255).max().item()


@pytest.mark.parametrize(("name", "levels"), FAMILIES)
def test_equals_the_weights_own_transform(photograph: np.ndarray, name: str, levels: int) -> None:
    preprocessing, transform = own(name)
    assert backbones._torchvision(name, None).preprocessing == preprocessing
    assert levels == {"bilinear": 1, "bicubic": 2}[preprocessing.interpolation]
    images = [photograph, *pictures(name)]
    for image, ours in zip(images, preprocessing.normalise(preprocessing.fit(images)), strict=True):
        assert grey_levels(ours, transform(Image.fromarray(image)), preprocessing) <= levels + 1e-3, image.shape


@pytest.mark.parametrize(("name", "levels"), [("resnet18", 1), ("efficientnet_b0", 2)])
def test_equals_the_weights_own_transform_on_grey_images(photograph: np.ndarray, name: str, levels: int) -> None:
    preprocessing, transform = own(name)
    images = [image[..., 0] for image in (photograph, *pictures(name))]
    for image, ours in zip(images, preprocessing.normalise(preprocessing.fit(images)), strict=True):
        theirs = transform(Image.fromarray(image).convert("RGB"))
        assert grey_levels(ours, theirs, preprocessing) <= levels + 1e-3, image.shape


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_equals_timms_own_transform(photograph: np.ndarray, name: str) -> None:
    timm = pytest.importorskip("timm")
    config = timm.data.resolve_data_config(pretrained_cfg=timm.models.get_pretrained_cfg(name).to_dict())
    transform = timm.data.create_transform(**config, is_training=False)
    preprocessing = backbones._timm(name, name).preprocessing
    levels = {"bilinear": 1, "bicubic": 2}[preprocessing.interpolation]
    images = [photograph, *pictures(name)]
    for image, ours in zip(images, preprocessing.normalise(preprocessing.fit(images)), strict=True):
        assert grey_levels(ours, transform(Image.fromarray(image)), preprocessing) <= levels + 1e-3, image.shape


def test_equals_timms_own_transform_where_weights_ask_for_more_than_resize_and_crop(photograph: np.ndarray) -> None:
    timm = pytest.importorskip("timm")
    settings = {}
    for name in timm.list_pretrained():
        config = timm.data.resolve_data_config(pretrained_cfg=timm.models.get_pretrained_cfg(name).to_dict())
        mode, share = config["crop_mode"], config["crop_pct"]
        if (mode == "squash" and share != 1) or mode == "border" or share > 1:
            settings[mode, share, config["input_size"]] = name, config
    assert {mode for mode, *_ in settings} >= {"squash", "center"}
    images = [photograph, photograph[:60, 20:50].copy()]
    for name, config in settings.values():
        assert_as_timm(images, backbones._timm(name, name).preprocessing, config)


@pytest.mark.parametrize("share", [0.8, 1.0, 1.2])
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_every_way_of_timms_to_resize(photograph: np.ndarray, mode: str, share: float) -> None:
    config = {"input_size": (3, 40, 40), "crop_pct": share, "crop_mode": mode, "interpolation": "bilinear"}
    config |= {"mean": (0.2, 0.5, 0.7), "std": (1.0, 1.0, 1.0)}
    preprocessing = Preprocessing(
        image_size=40,
        resize_size=int(40 / share),
        interpolation="bilinear",
        mean=config["mean"],
        std=config["std"],
        resize={"center": "crop", "squash": "squash-crop", "border": "pad"}[mode],
    )
    images = [photograph, photograph[:, :150], photograph[:7, :9], photograph[:200, :200], photograph[:3, :201]]
    images += [photograph[:33, :35, 0], photograph[:90, :11, 0]]
    assert_as_timm(images, preprocessing, config)


def assert_as_timm(images: list[np.ndarray], preprocessing: Preprocessing, config: dict[str, object]) -> None:
    """Within 2 levels; a side that timm rounds to no pixel at all, which Pillow refuses, is one pixel here."""
    timm = pytest.importorskip("timm")
    transform = timm.data.create_transform(**config, is_training=False, normalize=False)
    for image, ours in zip(images, preprocessing.fit(images), strict=True):
        try:
            theirs = transform(Image.fromarray(image).convert("RGB"))
        except ValueError:
            assert preprocessing.resize == "pad"
            continue
        theirs = torch.from_numpy(np.array(theirs)) if not isinstance(theirs, torch.Tensor) else theirs
        assert (ours.int() - theirs.int()).abs().max() <= 2, (preprocessing, image.shape)


def test_what_is_recorded_of_the_usual_ways_stays_as_it_was() -> None:
    pytest.importorskip("timm")
    told = backbones._timm("coat_lite_medium_384", "coat_lite_medium_384").preprocessing.to_json()
    assert (told["resize"], told["resize_size"], told["image_size"]) == ("squash", 384, 384)
    told = backbones._timm("tf_efficientnet_lite0", "tf_efficientnet_lite0").preprocessing.to_json()
    assert hashing.fingerprint(told) == "116504ebba6cb84039c917bc9122654c"


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(40, 4000, 3), (4000, 40, 3), (41, 1003), (1, 500, 3), (3, 24), (2400, 150)])
def test_strips_are_resized_as_if_whole(shape: tuple[int, ...], interpolation: str) -> None:
    preprocessing = Preprocessing(
        image_size=32, resize_size=37, interpolation=interpolation, mean=(0, 0, 0), std=(1, 1, 1)
    )
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    (found,) = preprocessing.fit([image]).int()
    expected = resized_whole(image, preprocessing).int()
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 2
    assert (found != expected).float().mean() < 0.15


def resized_whole(image: np.ndarray, preprocessing: Preprocessing) -> torch.Tensor:
    """As torchvision does it, however long the image."""
    batch = torch.from_numpy(image)[None] if image.ndim == 2 else torch.from_numpy(image).permute(2, 0, 1)
    mode = InterpolationMode(preprocessing.interpolation)
    batch = transform.resize(batch[None], [preprocessing.resize_size], interpolation=mode)
    return transform.center_crop(batch, [preprocessing.image_size])[0]


@pytest.mark.parametrize("shape", [(10, 79, 3), (79, 10), (60, 479, 3)])
def test_images_that_are_no_strips_are_resized_whole_to_the_bit(shape: tuple[int, ...]) -> None:
    preprocessing, _ = own("resnet18")
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert torch.equal(preprocessing.fit([image])[0], resized_whole(image, preprocessing))


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("resize_size", [37, 30])
def test_a_strip_takes_no_more_memory_than_other_images(
    monkeypatch: pytest.MonkeyPatch, resize: str, resize_size: int
) -> None:
    """1 x 60,000 pixels would become 37 x 2,220,000 before the crop."""
    resized = transform.resize

    def bounded(images: torch.Tensor, size: list[int], **how: object) -> torch.Tensor:
        assert size[0] * size[1] <= 37 * 37 * 8
        return resized(images, size, **how)

    monkeypatch.setattr(transform, "resize", bounded)
    preprocessing = Preprocessing(
        image_size=32, resize_size=resize_size, interpolation="bilinear", mean=(0, 0, 0.5), std=(1, 1, 1), resize=resize
    )
    strip = np.random.default_rng(0).integers(0, 256, (1, 60_000, 3), dtype=np.uint8)
    wide, tall, other = preprocessing.fit([strip, strip.swapaxes(0, 1), strip[:, :7]])
    assert (wide.int() - tall.permute(0, 2, 1).int()).abs().max() <= 1
    assert torch.equal(other, preprocessing.fit([strip[:, :7]])[0])
    content = np.zeros((1, 16), np.uint8)
    assert Augmentation(views=2, seed=0).draw([strip], content, preprocessing).shape == (1, 2, 3, 32, 32)


@pytest.mark.parametrize("resize", ["squash", "squash-crop", "pad"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_enormous_strips_of_which_all_is_shown_are_averaged_first(
    monkeypatch: pytest.MonkeyPatch, resize: str, interpolation: str
) -> None:
    preprocessing = Preprocessing(
        image_size=32, resize_size=36, interpolation=interpolation, mean=(0.5,) * 3, std=(1, 1, 1), resize=resize
    )
    image = np.random.default_rng(0).integers(0, 256, (3, 9000, 3), dtype=np.uint8)
    for strip in (image, image.swapaxes(0, 1)):
        whole = preprocessing.fit([strip])
        with monkeypatch.context() as patch:
            patch.setattr(preprocessing_module, "_STRIP_PIXELS", 0)
            assert (preprocessing.fit([strip]).int() - whole.int()).abs().max() <= 2


def test_grey_images_get_a_margin_of_the_mean_colour() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (5, 10, 20), dtype=np.uint8)
    as_rgb = np.repeat(grey[..., None], 3, axis=-1)
    for mean, channels in (((0.5, 0.5, 0.5), 1), ((0.2, 0.5, 0.7), 3)):
        padded = Preprocessing(
            image_size=30, resize_size=30, interpolation="bilinear", mean=mean, std=(1, 1, 1), resize="pad"
        )
        fitted = padded.fit(grey)
        assert fitted.shape == (5, channels, 30, 30)
        assert fitted[0, :, 0, 0].tolist() == [round(255 * value) for value in mean[:channels]]
        assert torch.equal(fitted.expand(-1, 3, -1, -1), padded.fit(as_rgb))
        assert torch.equal(padded.fit([grey[0], as_rgb[1]]), padded.fit(as_rgb[:2]))


@pytest.mark.parametrize(("name", "levels"), [("resnet18", 1), ("efficientnet_b0", 2)])
def test_photographs_equal_pillows_way_from_the_file_on(hymenoptera: Path, name: str, levels: int) -> None:
    preprocessing, transform = own(name)
    paths = sorted(hymenoptera.rglob("*.jpg"))[::16]
    ours = preprocessing.normalise(preprocessing.fit([decode(path.read_bytes()) for path in paths]))
    for path, one in zip(paths, ours, strict=True):
        with Image.open(path) as image:
            assert grey_levels(one, transform(image.convert("RGB")), preprocessing) <= levels + 1e-3, path


def test_resnet18_is_loaded_with_that_preprocessing() -> None:
    assert load_backbone("resnet18", weights="none").preprocessing == own("resnet18")[0]


def test_a_stack_is_fitted_like_its_images(photograph: np.ndarray) -> None:
    preprocessing, _ = own("efficientnet_b0")
    stack = np.stack([photograph, photograph[::-1]])
    assert torch.equal(preprocessing.fit(stack), preprocessing.fit(list(stack)))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(28, 28), (8, 8), (128, 128), (129, 128), (1, 40)])
def test_an_image_is_the_same_alone_and_among_any_others(shape: tuple[int, int], interpolation: str) -> None:
    preprocessing = Preprocessing(
        image_size=48, resize_size=55, interpolation=interpolation, mean=(0, 0, 0), std=(1, 1, 1)
    )
    grey = np.random.default_rng(1).integers(0, 256, (37, *shape), dtype=np.uint8)
    fitted = preprocessing.fit(grey)
    assert fitted.shape == (37, 1, 48, 48)
    as_rgb = preprocessing.fit(np.repeat(grey[..., None], 3, axis=-1))
    assert torch.equal(fitted.expand(-1, 3, -1, -1), as_rgb)
    for n in (1, 2, 3, 5, 16, 17):
        assert torch.equal(preprocessing.fit(grey[-n:]), fitted[-n:])
    mixed = [grey[0], grey[1].T.copy(), grey[2], np.repeat(grey[3][..., None], 3, axis=-1)]
    shown = preprocessing.fit(mixed)
    assert torch.equal(shown[[0, 2, 3]], fitted[[0, 2, 3]].expand(-1, 3, -1, -1))
    assert torch.equal(shown[1], preprocessing.fit(mixed[1:2])[0].expand(3, -1, -1))


def test_channels_are_last_in_memory_and_read_only_or_strided_images_will_do() -> None:
    preprocessing, _ = own("resnet18")
    stack = np.random.default_rng(0).integers(0, 256, (20, 30, 40, 3), dtype=np.uint8)
    fitted = preprocessing.fit(stack)
    assert fitted.is_contiguous(memory_format=torch.channels_last)
    assert preprocessing.fit(stack[..., 0]).is_contiguous()
    stack.flags.writeable = False
    assert torch.equal(preprocessing.fit(stack), fitted)
    assert torch.equal(preprocessing.fit(list(stack)), fitted)
    assert torch.equal(preprocessing.fit(stack[::-2]), preprocessing.fit(stack[::-2].copy()))
    assert torch.equal(preprocessing.fit(stack[:, ::-1, 5:9]), preprocessing.fit(stack[:, ::-1, 5:9].copy()))


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
    enlarged = replace(preprocessing, resize_size=200).override(image_size=112)
    assert (enlarged.image_size, enlarged.resize_size) == (112, 100)
    with pytest.raises(UsageError, match="resizing to 0 pixels: expected a whole number from 1 on"):
        replace(preprocessing, resize_size=0)
    with pytest.raises(UsageError, match="unknown way to resize 'stretch'"):
        preprocessing.override(resize="stretch")
    with pytest.raises(UsageError, match="--image-size 0: expected a whole number"):
        preprocessing.override(image_size=0)
    with pytest.raises(UsageError, match="--mean 0.5: expected 3 numbers"):
        preprocessing.override(mean=(0.5,))
    with pytest.raises(UsageError, match="--std 0,1,1: expected numbers above 0"):
        preprocessing.override(std=(0, 1, 1))
