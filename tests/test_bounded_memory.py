"""Many images stream through in bounded memory; what is kept of a row is its id, label and digest, and nothing else.

FEATCACHE_IMAGES=1000000 does it with a million, 4.8 GB of pixels.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import BACKBONE
from forking import Forked
from numpy.typing import NDArray
from PIL import Image

from featcache.embedding.job import Embedding
from featcache.models.backbones import Backbone, load_backbone
from featcache.models.stages import StagedModel
from featcache.sources.image_sets import ImageDataset, ReadImages, Split, load_dataset
from featcache.sources.preprocessing import Preprocessing

COUNT = int(os.environ.get("FEATCACHE_IMAGES", "200000"))
#: Beside what is kept of each row: the batches under way, and what torch and the C library keep for the next ones.
OTHERS = 200 << 20


@dataclass(frozen=True)
class Synthetic:
    """Images of 40 x 40 pixels, 4,800 bytes each, that are made when they are read."""

    rows: NDArray[np.int64]
    in_memory: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: NDArray[np.int64]) -> Synthetic:
        return Synthetic(self.rows[rows])

    def digests(self) -> NDArray[np.uint8]:
        content = np.zeros((len(self.rows), 2), np.int64)
        content[:, 0] = self.rows + 1
        return content.view(np.uint8)

    def read(self, rows: NDArray[np.int64]) -> ReadImages:
        some = Synthetic(self.rows[np.asarray(rows)])
        pixels = np.empty((len(some), 40, 40, 3), np.uint8)
        pixels[:] = some.rows.astype(np.uint8)[:, None, None, None]
        pixels[:, 0, 0, 0] = some.rows // 256 % 256
        return ReadImages(pixels, some.digests())


def memory(field: str) -> int:
    """Bytes of this process: ``VmRSS``, which it holds, or ``VmHWM``, the most that it held."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) * 1024


def build(count: int) -> None:
    """Embed so many images; print what came of it, and by how many bytes the memory grew."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 64, 40), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(64, 2)]
    preprocessing = Preprocessing(
        image_size=40, resize_size=40, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3
    )
    staged = StagedModel(torch.nn.Sequential(*layers), torch.zeros(1, 3, 40, 40))
    backbone = Backbone("small", staged, preprocessing, {"name": "none", "sha256": "0" * 64, "seed": 0})
    splits = {}
    for name, rows in (("train", np.arange(count)), ("test", np.arange(count, count + 1000))):
        splits[name] = Split(tuple(f"{name}/{i}" for i in rows), rows % 2, Synthetic(rows))
    before = memory("VmRSS")
    done = Embedding(
        dataset=ImageDataset("many", ("a", "b"), splits),
        backbone=backbone,
        cache_dir=Path("features"),
        device=torch.device("cpu"),
        batch_size=1000,
        workers=1,
    ).run()
    grown = memory("VmHWM") - before
    train = done.cache.splits["train"]
    some = np.linspace(0, count - 1, 50).astype(int)
    with torch.inference_mode():
        pixels = preprocessing.fit(splits["train"].images.read(some).pixels)
        expected = staged.trunk()(preprocessing.normalise(pixels)).numpy()
    np.testing.assert_allclose(train.load(some), expected, atol=2e-3, rtol=0)
    assert [train.ids[i] for i in some] == [f"train/{i}" for i in some]
    print(json.dumps({"rows": done.rows, "grown": grown}))


def embed_folder(folder: Path) -> None:
    """Embed a folder of images; print by how many bytes the memory grew."""
    backbone = load_backbone(BACKBONE, weights="none", image_size=128)
    dataset = load_dataset(str(folder))
    before = memory("VmRSS")
    done = Embedding(
        dataset=dataset, backbone=backbone, cache_dir=Path("features"), device=torch.device("cpu"), batch_size=8
    ).run()
    print(json.dumps({"rows": done.rows, "damaged": done.rows_damaged, "grown": memory("VmHWM") - before}))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is in /proc")
@pytest.mark.parametrize("count", [75_000, pytest.param(COUNT, marks=pytest.mark.slow)])
def test_images_stream_through(tmp_path: Path, count: int) -> None:
    """With few images; the many, whose quicker twin that is, are slow."""
    process = Forked(build, count, folder=tmp_path)
    out, err = process.communicate(timeout=1000)
    assert process.returncode == 0, err
    told = json.loads(out.splitlines()[-1])
    assert told["rows"] == count + 1000
    assert told["grown"] < OTHERS + count * 1000, told
    assert OTHERS + count * 1000 < count * 4800  # or it would not show that all were kept


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is in /proc")
def test_one_image_of_extreme_proportions_costs_no_memory(tmp_path: Path, folder: Path) -> None:
    """Resized before it was cropped, 1 x 60,000 pixels would become 128 x 7,680,000 at least, 2.9 GB."""
    grown = []
    for n_strips in (0, 1):
        if n_strips:
            Image.new("RGB", (1, 60_000), "red").save(folder / "train" / "red" / "strip.png")
        process = Forked(embed_folder, folder, folder=tmp_path)
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        summary = json.loads(out.splitlines()[-1])
        assert (summary["rows"], summary["damaged"]) == (52 + n_strips, 0)
        grown.append(summary["grown"])
    assert grown[1] - grown[0] < 1 << 30, grown
