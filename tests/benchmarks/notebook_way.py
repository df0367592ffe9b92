"""What rates are compared with: ResNet-18 as in a notebook, one PIL transform an image, fp32, nothing overlapped.

python tests/benchmarks/notebook_way.py fashion-mnist 10000 features.h5    # or a folder of classes, or an .npy file

Prints the seconds that making the model took, and those of embedding.
"""

from __future__ import annotations

import gzip
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import models, transforms
from torchvision.datasets import ImageFolder

BATCH = 64


class Pictures(Dataset[torch.Tensor]):
    """Arrays (H, W) or (H, W, 3) uint8, or paths of files, each through the transform of torchvision's weights."""

    def __init__(self, sources: Sequence[Any]) -> None:
        self.sources = sources
        self.transform = transforms.Compose(
            [
                transforms.Resize(256),
                transforms.CenterCrop(224),
                transforms.ToTensor(),
                transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            ]
        )

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> torch.Tensor:
        source = self.sources[index]
        image = Image.open(source) if isinstance(source, Path) else Image.fromarray(source)
        return self.transform(image.convert("RGB"))


def model() -> torch.nn.Module:
    network = models.resnet18(weights=None)
    network.fc = torch.nn.Identity()
    return network.eval()


def embed(network: torch.nn.Module, sources: Sequence[Any], path: Path) -> None:
    """Embed all, then write them as one data set."""
    features = []
    with torch.no_grad():
        for batch in DataLoader(Pictures(sources), batch_size=BATCH):
            features.append(network(batch).numpy())
    with h5py.File(path, "w") as file:
        file["features"] = np.concatenate(features)


def main() -> None:
    name, count, path = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    if name == "fashion-mnist":
        packed = Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")
        pixels = np.frombuffer(gzip.decompress(packed.read_bytes()), np.uint8, offset=16)
        sources: Sequence[Any] = pixels.reshape(-1, 28, 28)[:count]
    elif name.endswith(".npy"):
        sources = np.load(name)[:count]
    else:
        sources = [Path(file) for file, _ in ImageFolder(name).samples][:count]
    begun = time.perf_counter()
    network = model()
    ready = time.perf_counter()
    embed(network, sources, path)
    print(ready - begun, time.perf_counter() - ready)


if __name__ == "__main__":
    main()
