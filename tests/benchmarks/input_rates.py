"""How fast images become batches, with nothing computed from them: featcache beside Pillow in a DataLoader.

    python tests/benchmarks/input_rates.py [--folder PICTURES] [--weights resnet18] [--repeat 5] [--workers 0,1,2]

Reads JPEG files (of the folder, or drawn for the purpose) and 32-pixel arrays. The reference is what a notebook does:
``Image.open``, ``convert("RGB")``, the transform of the torchvision weights, and a DataLoader with worker processes. It
also normalises, which featcache leaves to the network; the row "without normalising" takes that out. Prints a Markdown
table for each. Files have been read once before; times are medians, and variants take turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.models import get_model_weights
from torchvision.transforms import v2

from featcache.models.backbones import load_backbone
from featcache.sources.batches import BatchReader
from featcache.sources.image_sets import ArrayImages, FileImages, Images
from featcache.sources.preprocessing import Preprocessing

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, help="of JPEG files; drawn for the purpose without")
    parser.add_argument("--weights", default="resnet18", help="a torchvision model, for its transform")
    parser.add_argument("--files", type=int, default=256)
    parser.add_argument("--arrays", type=int, default=2048)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--workers", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    arguments = parser.parse_args()
    transform = get_model_weights(arguments.weights).DEFAULT.transforms()
    preprocessing = load_backbone(arguments.weights, weights="none").preprocessing
    with tempfile.TemporaryDirectory() as drawn:
        folder = arguments.folder or draw(Path(drawn), arguments.files)
        paths = sorted(folder.rglob("*.jpg"))[: arguments.files]
        files = FileImages(folder, tuple(str(path.relative_to(folder)) for path in paths))
        variants = ways(files, Pictures(paths, transform), preprocessing, arguments.workers)
        report(f"{len(files):,} JPEG files", len(files), measured(variants, arguments.repeat))
    pixels = np.random.default_rng(0).integers(0, 256, (arguments.arrays, 32, 32, 3), dtype=np.uint8)
    variants = ways(ArrayImages(pixels), Pictures(pixels, transform), preprocessing, arguments.workers)
    report(f"{len(pixels):,} arrays of 32 x 32", len(pixels), measured(variants, arguments.repeat))


class Pictures(torch.utils.data.Dataset[Any]):
    """The notebook's data set."""

    def __init__(self, sources: Sequence[Any], transform: Callable[[Any], Any]) -> None:
        self.sources, self.transform = sources, transform

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> Any:
        source = self.sources[index]
        return self.transform(Image.fromarray(source) if isinstance(source, np.ndarray) else opened(source))


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def draw(folder: Path, count: int) -> Path:
    """Waves with a little noise, 500 x 375: they take about the bytes of a photograph."""
    y, x = np.mgrid[0:375, 0:500] / 50.0
    for i in range(count):
        rng = np.random.default_rng(i)
        a, b, c = rng.uniform(1, 4, 3)
        waves = np.stack([np.sin(a * x + y), np.cos(b * y) * np.sin(x), np.sign(np.sin(c * x * y))], axis=-1)
        noisy = waves * 90 + 128 + rng.normal(0, 8, waves.shape)
        Image.fromarray(np.uint8(noisy.clip(0, 255))).save(folder / f"{i:05}.jpg", quality=90)
    return folder


def ways(
    images: Images, pictures: Pictures, preprocessing: Preprocessing, all_workers: Sequence[int]
) -> dict[str, Callable[[], Iterable[Any]]]:
    """By name, what gives the batches of one pass."""
    settled = [np.arange(i, min(i + BATCH, len(images))) for i in range(0, len(images), BATCH)]
    content = images.digests()
    reader = BatchReader(
        images={"train": images},
        content={"train": content},
        groups=[("train", rows) for rows in settled],
        preprocessing=preprocessing,
        augmentation=None,
    )
    resized = v2.Compose(
        [
            v2.Resize(preprocessing.resize_size, interpolation=v2.InterpolationMode(preprocessing.interpolation)),
            v2.CenterCrop(preprocessing.image_size),
            v2.PILToTensor(),
        ]
    )

    def loader(data: Pictures, workers: int) -> Iterable[Any]:
        return torch.utils.data.DataLoader(data, batch_size=BATCH, num_workers=workers)

    found: dict[str, Callable[[], Iterable[Any]]] = {}
    for workers in all_workers:
        found[f"Pillow, {workers} processes"] = lambda workers=workers: loader(pictures, workers)
        found[f"Pillow without normalising, {workers} processes"] = lambda workers=workers: loader(
            Pictures(pictures.sources, resized), workers
        )
        found[f"featcache, {workers} threads"] = lambda workers=workers: reader.batches(
            workers=workers, pin_memory=False
        )
    check(found, preprocessing)
    return found


def check(found: dict[str, Callable[[], Iterable[Any]]], preprocessing: Preprocessing) -> None:
    """All give the same pictures, to two grey levels."""
    first = {name: next(iter(way())) for name, way in found.items()}
    reference = next(batch for name, batch in first.items() if "without" in name)
    for name, batch in first.items():
        if name.startswith("featcache"):
            assert (batch.images[:, 0].short() - reference.short()).abs().max() <= 2, name
        elif "without" not in name:
            normalised = preprocessing.normalise(reference)
            assert (batch - normalised).abs().max() <= 2 / 255 / min(preprocessing.std) + 1e-5, name


def measured(found: dict[str, Callable[[], Iterable[Any]]], repeat: int) -> dict[str, tuple[float, float]]:
    """Median seconds until the first batch, and until the last."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in found}
    for _ in range(repeat):
        for name, way in found.items():
            begun = time.perf_counter()
            batches = iter(way())
            next(batches)
            first = time.perf_counter() - begun
            for _ in batches:
                pass
            seconds[name].append((first, time.perf_counter() - begun))
    return {
        name: (statistics.median(first for first, _ in taken), statistics.median(all_ for _, all_ in taken))
        for name, taken in seconds.items()
    }


def report(title: str, count: int, seconds: dict[str, tuple[float, float]]) -> None:
    reference = next(iter(seconds.values()))[1]
    print(f"\n| {title} | images/s | ratio | first batch after |\n|---|---|---|---|")
    for name, (first, taken) in seconds.items():
        print(f"| {name} | {count / taken:,.0f} | {reference / taken:.2f} | {first:.2f} s |")


if __name__ == "__main__":
    main()
