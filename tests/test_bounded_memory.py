"""Many images stream through in bounded memory; what is told of a row is kept, nothing else.

FEATCACHE_IMAGES=1000000 does it with a million, 4.8 GB of pixels.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

#: Runs in a process of its own, whose largest memory it tells.
BUILD = """
import json, resource, sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
import numpy as np, torch
from featcache.backbones import Backbone
from featcache.datasets import ImageDataset, ReadImages, Split
from featcache.embedding import Embedding
from featcache.preprocessing import Preprocessing
from featcache.stages import StagedModel

@dataclass(frozen=True)
class Synthetic:
    rows: np.ndarray
    in_memory: ClassVar[bool] = True
    def __len__(self): return len(self.rows)
    def take(self, rows): return Synthetic(self.rows[rows])
    def digests(self):
        content = np.zeros((len(self.rows), 2), np.int64)
        content[:, 0] = self.rows + 1
        return content.view(np.uint8)
    def read(self, rows):
        some = Synthetic(self.rows[np.asarray(rows)])
        pixels = np.empty((len(some), 40, 40, 3), np.uint8)
        pixels[:] = some.rows.astype(np.uint8)[:, None, None, None]
        pixels[:, 0, 0, 0] = some.rows // 256 % 256
        return ReadImages(pixels, some.digests())

n = int(sys.argv[1])
torch.manual_seed(0)
layers = [torch.nn.Conv2d(3, 64, 40), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(64, 2)]
preprocessing = Preprocessing(
    image_size=40, resize_size=40, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3
)
staged = StagedModel(torch.nn.Sequential(*layers), torch.zeros(1, 3, 40, 40))
backbone = Backbone("small", staged, preprocessing, {"name": "none", "sha256": "0" * 64, "seed": 0})
splits = {}
for name, rows in (("train", np.arange(n)), ("test", np.arange(n, n + 1000))):
    splits[name] = Split(tuple(f"{name}/{i}" for i in rows), rows % 2, Synthetic(rows))
work = Embedding(
    dataset=ImageDataset("many", ("a", "b"), splits), backbone=backbone, cache_dir=Path(sys.argv[2]),
    device=torch.device("cpu"), batch_size=1000, workers=1,
)
done = work.run()
train = done.cache.splits["train"]
some = np.linspace(0, n - 1, 50).astype(int)
with torch.inference_mode():
    pixels = preprocessing.fit(splits["train"].images.read(some).pixels)
    expected = staged.trunk()(preprocessing.normalise(pixels)).numpy()
print(json.dumps({
    "rows": done.rows,
    "error": float(np.abs(train.load(some) - expected).max()),
    "ids": [train.ids[i] for i in some] == [f"train/{i}" for i in some],
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}))
"""


def test_images_stream_through(tmp_path: Path) -> None:
    count = int(os.environ.get("FEATCACHE_IMAGES", "200000"))
    arguments = [sys.executable, "-c", BUILD, str(count), str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["rows"] == count + 1000
    assert told["error"] < 2e-3
    assert told["ids"]
    others = 5 << 29  # torch, the code, and the batches under way
    assert told["peak"] < others + count * 1000, told  # an image has 4,800 bytes
