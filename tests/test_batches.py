"""Batches: the same whoever reads them, channels last, small files together and large ones alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from forking import Forked
from making import noise_pixels
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional._geometry import _do_native_uint8_resize_on_cpu

from featcache.sources import batches
from featcache.sources.augmented_views import Augmentation
from featcache.sources.batches import Batch, BatchReader, views
from featcache.sources.image_sets import ArrayImages, FileImages, Images, ReadImages
from featcache.sources.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(image_size=24, resize_size=27, interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3)
VIEWS = Augmentation(views=2, seed=1)


def reader(images: Images, *, of: int, augmentation: Augmentation | None = None) -> BatchReader:
    groups = [("train", np.arange(i, min(i + of, len(images)))) for i in range(0, len(images), of)]
    content = {"train": images.digests()}
    return BatchReader(
        images={"train": images}, content=content, groups=groups, preprocessing=PREPROCESSING, augmentation=augmentation
    )


def read(images: Images, *, of: int = 4, workers: int = 0, augmentation: Augmentation | None = None) -> list[Batch]:
    return list(reader(images, of=of, augmentation=augmentation).batches(workers=workers, pin_memory=False))


@pytest.fixture
def files(tmp_path: Path) -> FileImages:
    """Of many shapes and formats, grey and coloured, small and large; the 4th and 8th damaged."""
    shapes = [(30, 40, 3), (30, 40), (600, 700, 3), (30, 40, 3), (9, 70), (600, 700), (30, 40, 3), (1, 1), (50, 20, 3)]
    names = [f"{i}.{'png' if i % 2 else 'jpg'}" for i in range(len(shapes))]
    for i, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        Image.fromarray(noise_pixels(*shape, seed=i)).save(tmp_path / name)
    (tmp_path / names[3]).write_bytes(b"no image")
    (tmp_path / names[7]).unlink()
    return FileImages(tmp_path, tuple(names))


@pytest.mark.parametrize("augmentation", [None, VIEWS])
def test_the_threads_and_the_batches_change_nothing(files: FileImages, augmentation: Augmentation | None) -> None:
    stack = ArrayImages(noise_pixels(9, 20, 20, 3))
    for images in (files, stack, ArrayImages(noise_pixels(9, 8, 8))):
        expected = torch.cat(
            [batch.images.expand(-1, -1, 3, -1, -1) for batch in read(images, augmentation=augmentation)]
        )
        for workers, of in ((1, 4), (3, 4), (3, 1), (0, 9), (2, 2)):
            got = read(images, of=of, workers=workers, augmentation=augmentation)
            assert [row for batch in got for row in batch.rows.tolist()] == list(range(9))
            shown = torch.cat([batch.images.expand(-1, -1, 3, -1, -1) for batch in got])
            assert torch.equal(shown, expected), (workers, of)


def test_every_image_is_at_its_place(files: FileImages) -> None:
    (batch,) = read(files, of=9, augmentation=VIEWS)
    for position, name in enumerate(files.names):
        alone = FileImages(files.root, (name,)).read([0])
        shown = views(alone.pixels, alone.digests, PREPROCESSING, VIEWS)[0]
        assert torch.equal(batch.images[position], shown.expand(-1, 3, -1, -1))
    assert list(batch.damaged) == [3, 7]
    assert batch.damaged[3].startswith("not a JPEG")
    assert batch.damaged[7].startswith("cannot be read")
    assert not batch.images[[3, 7]].any()


def test_a_file_that_changed_is_told(files: FileImages) -> None:
    asked = reader(files, of=9)
    Image.fromarray(noise_pixels(5, 5)).save(files.root / files.names[6])
    for workers in (0, 2):
        (batch,) = asked.batches(workers=workers, pin_memory=False)
        assert batch.changed == 6
    assert read(files, of=9)[0].changed is None


@pytest.mark.parametrize("augmentation", [None, VIEWS])
def test_channels_are_last_in_memory_and_grey_stays_one(files: FileImages, augmentation: Augmentation | None) -> None:
    of_kind = {
        3: [files, ArrayImages(noise_pixels(9, 20, 20, 3))],
        1: [ArrayImages(noise_pixels(9, 8, 8)), files.take(np.array([1, 5]))],
    }
    for channels, all_images in of_kind.items():
        for images in all_images:
            for batch in read(images, augmentation=augmentation):
                n = len(batch.rows)
                assert batch.images.shape == (n, 3 if augmentation else 1, channels, 24, 24)
                assert batch.images.dtype == torch.uint8
                flat = batch.images.flatten(0, 1)
                assert flat.data_ptr() == batch.images.data_ptr()  # no copy
                assert flat.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory is for GPUs")
def test_pinned_batches_are_the_same(files: FileImages) -> None:
    for workers in (0, 2):
        given = reader(files, of=4, augmentation=VIEWS).batches(workers=workers, pin_memory=True)
        for pinned, batch in zip(given, read(files, augmentation=VIEWS), strict=True):
            assert pinned.images.is_pinned()
            assert pinned.images.stride() == batch.images.stride()
            assert torch.equal(pinned.images, batch.images)


@dataclass
class Slow:
    """Pictures of given sides, each of which takes a millisecond to read, as files would."""

    sides: Sequence[int]
    in_memory: ClassVar[bool] = False
    n_read: ClassVar[list[int]] = []

    def __len__(self) -> int:
        return len(self.sides)

    def take(self, rows: np.ndarray) -> Slow:
        return Slow([self.sides[row] for row in rows])

    def digests(self) -> np.ndarray:
        return np.zeros((len(self), 16), np.uint8)

    def read(self, rows: Sequence[int]) -> ReadImages:
        time.sleep(0.001)
        self.n_read.append(len(rows))
        pixels = [noise_pixels(self.sides[row], self.sides[row], 3, seed=row) for row in rows]
        return ReadImages(pixels, np.zeros((len(pixels), 16), np.uint8))


def test_small_pictures_are_resized_together_and_photographs_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    together: list[int] = []
    fit = Preprocessing.fit

    def counting(self: Preprocessing, images: Sequence[np.ndarray]) -> torch.Tensor:
        together.append(len(images))
        assert sum(image.nbytes for image in images[:-1]) < batches._TOGETHER
        return fit(self, images)

    monkeypatch.setattr(Preprocessing, "fit", counting)
    read(Slow([32] * 64), of=64)
    assert together == [64]
    together.clear()
    read(Slow([600] * 8), of=8)
    assert together == [1] * 8
    together.clear()
    read(Slow([32, 32, 600, 500, 32, 32, 600, 32]), of=8)
    assert together == [3, 4, 1]


def test_the_time_is_told_by_what_it_went_into() -> None:
    for workers in (0, 2):
        got = read(Slow([32] * 8), of=4, workers=workers)
        for batch in got:
            assert batch.seconds.keys() == {"decode", "resize"}
            assert 0.004 <= batch.seconds["decode"] < 1
            assert 0 < batch.seconds["resize"] < 1


def test_a_batch_in_the_making_is_left_at_the_next_image() -> None:
    images = Slow([8] * 100_000)
    Slow.n_read.clear()
    groups = [("train", np.arange(1)), ("train", np.arange(1, 100_000))]
    got = replace(reader(images, of=1), groups=groups).batches(workers=2, pin_memory=False)
    assert len(next(got).rows) == 1
    got.close()
    assert sum(Slow.n_read) < 50_000


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted as Linux lists them")
@pytest.mark.skipif(not _do_native_uint8_resize_on_cpu(InterpolationMode.BILINEAR), reason="resized in float32 here")
def test_torch_wakes_no_threads_of_its_own_in_those_that_read(files: FileImages, tmp_path: Path) -> None:
    process = Forked(count_threads, files, folder=tmp_path)
    assert process.wait(timeout=60) == 0, process.communicate()


def count_threads(of_files: FileImages) -> None:
    torch.set_num_threads(4)
    for images in (of_files, ArrayImages(noise_pixels(64, 90, 90, 3)), ArrayImages(noise_pixels(64, 28, 28))):
        large = replace(reader(images, of=16, augmentation=VIEWS), preprocessing=PREPROCESSING.override(image_size=224))
        given = large.batches(workers=2, pin_memory=False)
        before = len(list(Path("/proc/self/task").iterdir()))
        for _ in given:
            assert len(list(Path("/proc/self/task").iterdir())) <= before + 2, images
    torch.zeros(1 << 20).add_(1)
    assert len(list(Path("/proc/self/task").iterdir())) > before  # it would show
