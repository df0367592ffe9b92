"""Augmented views: torchvision's own, and decided by nothing but the image, the settings and the view's number."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from forking import Forked
from hypothesis import given, settings
from hypothesis import strategies as st
from making import noise_pixels
from torchvision.transforms import v2

from featcache.common.errors import UsageError
from featcache.common.hashing import digest
from featcache.sources.augmented_views import Augmentation
from featcache.sources.decoding import pixels_digest, stack_digests
from featcache.sources.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(image_size=24, resize_size=27, interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3)
SHAPES = [(30, 40, 3), (40, 30), (24, 24, 3), (9, 70, 3), (1, 1), (61, 53, 3)]


def contents(images: list[np.ndarray]) -> np.ndarray:
    return stack_digests([pixels_digest(image) for image in images])


def draw(augmentation: Augmentation, images: list[np.ndarray]) -> torch.Tensor:
    return augmentation.draw(images, contents(images), PREPROCESSING)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return [noise_pixels(*shape, seed=i) for i, shape in enumerate(SHAPES)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_views_are_those_of_torchvisions_transforms(images: list[np.ndarray], interpolation: str) -> None:
    augmentation = Augmentation(views=6, seed=3, crop_scale=(0.2, 0.9), crop_ratio=(0.5, 1.5), flip=0.4)
    ours = augmentation.draw(images, contents(images), replace(PREPROCESSING, interpolation=interpolation))
    theirs = v2.Compose(
        [
            v2.RandomResizedCrop(24, (0.2, 0.9), (0.5, 1.5), interpolation=v2.InterpolationMode(interpolation)),
            v2.RandomHorizontalFlip(0.4),
        ]
    )
    for image, views in zip(images, ours, strict=True):
        channels_first = torch.tensor(image)[None] if image.ndim == 2 else torch.tensor(image).permute(2, 0, 1)
        for number, view in enumerate(views):
            key = digest(f"3,{number},".encode() + pixels_digest(image))
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int.from_bytes(key[:8], "little"))
                expected = theirs(channels_first)
            assert torch.equal(view, expected.expand(3, -1, -1))


def test_views_stay_the_same_from_release_to_release() -> None:
    gradient = (np.arange(50)[:, None] * 3 + np.arange(60)[None]).astype(np.uint8)
    content = np.arange(16, dtype=np.uint8)[None]
    preprocessing = replace(PREPROCESSING, image_size=1, resize_size=1)
    views = Augmentation(views=8, seed=20240, crop_scale=(0.05, 0.2)).draw([gradient], content, preprocessing)
    np.testing.assert_allclose(
        views.flatten().tolist(), [73, 97, 113, 134, 72, 99, 84, 68], atol=1
    )  # CPUs may round otherwise


@settings(max_examples=25, deadline=None)
@given(
    order=st.permutations(range(len(SHAPES))),
    kept=st.integers(1, len(SHAPES)),
    views=st.integers(1, 4),
    seed=st.integers(-(2**70), 2**70),
    global_seed=st.integers(0, 2**32),
)
def test_batch_order_number_of_views_and_global_seed_do_not_matter(
    images: list[np.ndarray], order: list[int], kept: int, views: int, seed: int, global_seed: int
) -> None:
    everything = draw(Augmentation(views=4, seed=seed), images)
    torch.manual_seed(global_seed)
    some = draw(Augmentation(views=views, seed=seed), [images[i] for i in order[:kept]])
    assert torch.equal(some.expand(-1, -1, 3, -1, -1), everything[order[:kept], :views])


def test_another_process_draws_the_same(images: list[np.ndarray], tmp_path: Path) -> None:
    augmentation = Augmentation(views=3, seed=1)
    process = Forked(draw_elsewhere, augmentation, images, folder=tmp_path)
    assert process.wait(timeout=60) == 0, process.communicate()
    np.testing.assert_array_equal(draw(augmentation, images).numpy(), np.load(tmp_path / "drawn.npy"))


def draw_elsewhere(augmentation: Augmentation, images: list[np.ndarray]) -> None:
    torch.manual_seed(99)
    np.save("drawn.npy", draw(augmentation, images).numpy())


def test_seeds_views_and_contents_differ() -> None:
    image = noise_pixels(64, 64, 3)
    views = [*draw(Augmentation(views=4, seed=0), [image])[0], *draw(Augmentation(views=4, seed=1), [image])[0]]
    pixels, other = np.stack([image, image]), np.uint8([[0] * 16, [1] * 16])  # the digest alone decides, here of equals
    views += [view[0] for view in Augmentation(views=1, seed=0).draw(pixels, other, PREPROCESSING)]
    assert not any(torch.equal(one, another) for one, another in combinations(views, 2))


def test_the_global_generator_is_left_alone(images: list[np.ndarray]) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    draw(Augmentation(views=2, seed=0), images)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match="zip"):
        Augmentation(views=2, seed=0).draw(images, contents(images[:-1]), PREPROCESSING)
    assert torch.equal(torch.get_rng_state(), before)


@settings(max_examples=200, deadline=None)
@given(
    height=st.integers(1, 600),
    width=st.integers(1, 600),
    scale=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    ratio=st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)).map(sorted),
    seed=st.integers(0, 2**64 - 1),
)
def test_parts_are_chosen_as_torchvision_does(
    height: int, width: int, scale: list[float], ratio: list[float], seed: int
) -> None:
    augmentation = Augmentation(views=1, seed=0, crop_scale=tuple(scale), crop_ratio=tuple(ratio))
    ours = augmentation._choose(height, width, torch.Generator().manual_seed(seed))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        theirs = v2.RandomResizedCrop.get_params(torch.empty(height, width, device="meta"), scale, ratio)
        assert ours == (theirs, bool(torch.rand(1) < 0.5))


def test_threads_draw_what_one_does_while_others_draw_of_their_own(images: list[np.ndarray]) -> None:
    augmentation = Augmentation(views=4, seed=3)
    expected = draw(augmentation, images)
    torch.manual_seed(5)
    numbers = torch.rand(200).tolist()
    torch.manual_seed(5)
    with ThreadPoolExecutor(4) as pool:
        drawn = [pool.submit(draw, augmentation, images) for _ in range(12)]
        assert [torch.rand(1).item() for _ in range(200)] == numbers
        assert all(torch.equal(future.result(), expected) for future in drawn)


def test_images_are_left_alone_and_may_be_read_only() -> None:
    image = noise_pixels(30, 30, 3)
    image.flags.writeable = False
    kept = image.copy()
    draw(Augmentation(views=2, seed=0, flip=1), [image])
    np.testing.assert_array_equal(image, kept)


def test_shapes_and_types() -> None:
    augmentation = Augmentation(views=3, seed=0)
    grey, colour = noise_pixels(2, 30, 40), noise_pixels(2, 30, 40, 3)
    for images, channels in ((grey, 1), (list(grey), 1), (colour, 3), ([*colour, *grey], 3)):
        views = draw(augmentation, images)
        assert views.shape == (len(images), 3, channels, 24, 24)
        assert views.dtype == torch.uint8
    assert draw(augmentation, colour).flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(draw(augmentation, grey), draw(augmentation, list(grey)))
    grey_among_colours = draw(augmentation, [grey[0], colour[0]])[0]
    assert torch.equal(grey_among_colours, draw(augmentation, grey[:1])[0].expand(-1, 3, -1, -1))


def test_a_whole_square_flipped_is_the_plain_resize_flipped() -> None:
    images = noise_pixels(3, 32, 32, 3)
    plain = replace(PREPROCESSING, resize_size=24).fit(images)
    for flip in (0, 1):
        whole = Augmentation(views=2, seed=0, crop_scale=(1, 1), crop_ratio=(1, 1), flip=flip)
        expected = plain.flip(-1) if flip else plain
        for view in draw(whole, images).unbind(1):
            assert torch.equal(view, expected)


@settings(max_examples=20, deadline=None)
@given(
    scale=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)).map(sorted),
    ratio=st.tuples(st.floats(0.5, 2), st.floats(0.5, 2)).map(sorted),
    seed=st.integers(0, 1000),
)
def test_views_show_the_share_asked_for_and_nothing_from_outside(
    scale: list[float], ratio: list[float], seed: int
) -> None:
    rows, columns = np.mgrid[0:200, 0:200].astype(np.uint8)
    position = np.stack([rows, columns, np.full_like(rows, 255)], axis=-1)
    views = draw(Augmentation(views=4, seed=seed, crop_scale=tuple(scale), crop_ratio=tuple(ratio), flip=0), [position])
    for view in views[0].float():
        height = (view[0, -1, 0] - view[0, 0, 0]).item() * 24 / 23
        width = (view[1, 0, -1] - view[1, 0, 0]).item() * 24 / 23
        assert view[2].min() == 255
        if height < 198 and width < 198:  # else torchvision may have fallen back to a central crop
            assert scale[0] * 0.9 - 0.02 < height * width / 200**2 < scale[1] * 1.1 + 0.02
            assert ratio[0] * 0.85 < width / height < ratio[1] * 1.15


def test_json_and_back() -> None:
    augmentation = Augmentation(views=8, seed=7, crop_scale=(0.5, 1), crop_ratio=(1, 1.5), flip=0)
    data = json.loads(json.dumps(augmentation.to_json()))
    assert data == augmentation.to_json()
    assert Augmentation.from_json(data) == augmentation
    as_floats = replace(augmentation, crop_scale=(0.5, 1.0), crop_ratio=(1.0, 1.5), flip=0.0)
    assert json.dumps(as_floats.to_json()) == json.dumps(augmentation.to_json())  # 1 and 1.0 are one setting


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"views": 0}, "--views 0: expected a whole number of at least 1"),
        ({"crop_scale": (0.0, 1.0)}, "--crop-scale 0,1: expected least,greatest share"),
        ({"crop_scale": (0.8, 0.5)}, "--crop-scale 0.8,0.5"),
        ({"crop_scale": (0.5, 1.5)}, "--crop-scale 0.5,1.5"),
        ({"crop_scale": (0.5,)}, "--crop-scale 0.5:"),
        ({"crop_scale": (float("nan"), 1.0)}, "--crop-scale nan,1"),
        ({"crop_ratio": (0.0, 1.0)}, "a crop ratio of 0,1: expected"),
        ({"crop_ratio": (1.0, float("inf"))}, "a crop ratio of 1,inf"),
        ({"flip": 1.5}, "--flip 1.5: expected a probability from 0 to 1"),
        ({"flip": float("nan")}, "--flip nan"),
    ],
)
def test_settings_out_of_range(changed: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}"):
        Augmentation(**{"views": 2, "seed": 0, **changed})
