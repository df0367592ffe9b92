"""Resize and crop as a graph: torch's are those of the cache, ONNX Runtime's as good as those of Pillow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.export import Dim

from featcache.sources.preprocessing import RESIZES, Preprocessing
from heads.serving import onnx_file
from heads.serving.fitting_graph import Fitting

SIZES = [(48, 40), (33, 97), (36, 36), (200, 31), (75, 120), (12, 9), (301, 226)]
PLAIN = {"image_size": 32, "resize_size": 36, "mean": (0.0,) * 3, "std": (1.0,) * 3}


class Both(nn.Module):
    """One graph for several, since making one takes seconds."""

    def __init__(self, *preprocessing: Preprocessing) -> None:
        super().__init__()
        self.fittings = nn.ModuleList(map(Fitting, preprocessing))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(fitting(images) for fitting in self.fittings)


def smooth(width: int, height: int) -> np.ndarray:
    """Colours that change from pixel to pixel, without the noise that no photograph has."""
    noise = np.random.default_rng(width).integers(0, 256, (height // 3 + 2, width // 3 + 2, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def by_pillow(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    height, width = image.shape[:2]
    how = Image.Resampling.BILINEAR if preprocessing.interpolation == "bilinear" else Image.Resampling.BICUBIC
    short, size = preprocessing.resize_size, preprocessing.image_size
    sides = (short * width // min(width, height), short * height // min(width, height))
    resized = Image.fromarray(image).resize(sides, how)
    left, top = (round((side - size) / 2) for side in sides)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("resize_size", [36, 28])
def test_torch_fits_as_for_the_cache(interpolation: str, resize: str, resize_size: int) -> None:
    numbers = {**PLAIN, "resize_size": resize_size, "mean": (0.2, 0.5, 0.7)}
    preprocessing = Preprocessing(**numbers, interpolation=interpolation, resize=resize)  # type: ignore[arg-type]
    for width, height in [*SIZES, (16, 9), (72, 33)]:
        image = smooth(width, height)
        found = Fitting(preprocessing)(torch.from_numpy(image[None].copy()))
        assert torch.equal(found, preprocessing.fit([image]))


@pytest.mark.parametrize("resize", RESIZES)
def test_of_a_strip_the_ends_are_not_resized(monkeypatch: pytest.MonkeyPatch, resize: str) -> None:
    preprocessing = Preprocessing(**PLAIN, interpolation="bilinear", resize=resize)  # type: ignore[arg-type]
    fitting, resized = Fitting(preprocessing), Fitting._resized

    def bounded(self: Fitting, images: Tensor, height: int, width: int) -> Tensor:
        assert height * width <= 36 * 36 * 70
        return resized(self, images, height, width)

    monkeypatch.setattr(Fitting, "_resized", bounded)
    for shape in ((2, 60_000, 3), (60_000, 2, 3), (1, 60_001, 3), (2, 300, 3), (300, 2, 3)):
        image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        found = fitting(torch.from_numpy(image[None])).int()
        assert found.shape == (1, 3, 32, 32)
        assert shape != (2, 60_000, 3) or (found - preprocessing.fit([image]).int()).abs().max() <= 2


def test_onnx_runtime_fits_nearly_so(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    both = [Preprocessing(**PLAIN, interpolation=each) for each in ("bilinear", "bicubic")]  # type: ignore[arg-type]
    both.append(replace(both[0], resize="pad", mean=(0.2, 0.5, 0.7)))
    lengths = {0: Dim("batch", min=1), 1: Dim("height", min=2, max=1 << 16), 2: Dim("width", min=2, max=1 << 16)}
    example = (torch.zeros(2, 87, 136, 3, dtype=torch.uint8),)
    graph = torch.export.export(Both(*both), example, dynamic_shapes={"images": lengths}, strict=False)
    shape = ("batch", "height", "width", 3)
    names = ["bilinear", "bicubic", "pad"]
    onnx_file.write(graph, tmp_path / "it.onnx", {}, input_shape=shape, outputs=names)
    session = onnxruntime.InferenceSession(tmp_path / "it.onnx")
    for width, height in SIZES:
        image = smooth(width, height)
        found = session.run(None, {"images": image[None]})
        for fitted, preprocessing, most in zip(found, both, (1, 2, 1), strict=True):
            others = [preprocessing.fit([image])[0].numpy()]
            if preprocessing in both[:2]:
                others.append(by_pillow(image, preprocessing).transpose(2, 0, 1))
            for other in others:
                assert np.abs(fitted[0].astype(int) - other).max() <= most
                assert np.mean(fitted[0] != other) < 0.05
