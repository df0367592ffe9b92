"""What tests of training share: random settings, and what two trainings came to, compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from making import Stop
from torch import Tensor, nn

ALL_RANDOM = {
    "optimizer": "adamw",
    "ema": 0.9,
    "mix": "mixup",
    "label_smoothing": 0.1,
    "clip": 1.0,
    "accumulate": 2,
    "batch_size": 5,
}


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def stop_at(epoch: int) -> Any:
    def on_epoch(entry: dict[str, Any]) -> None:
        if entry["epoch"] == epoch:
            raise Stop

    return on_epoch


def timeless(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in entry.items() if k not in ("seconds", "images_per_s")} for entry in history]


class HalfUsed(nn.Module):
    """A block with a parameter that its output does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.unused = nn.Conv2d(3, 4, 3), nn.Parameter(torch.ones(4, 4))

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).mean((2, 3))


class HalfUsedModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = HalfUsed(), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.body(images))
