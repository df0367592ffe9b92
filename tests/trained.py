"""What tests of training share: random settings, and what two trainings came to, compared."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

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
