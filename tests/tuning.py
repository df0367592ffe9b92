"""Small models and rows in memory for the tests of fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  as everyone calls it
import torchvision
from sklearn.datasets import load_digits
from torch import Tensor, nn

from featcache.models.stages import StagedModel
from finetune.new_head import replace_head
from finetune.planning import make_plan
from finetune.plans import Plan
from finetune.settings import Settings
from finetune.share import WHOLE, Share
from finetune.sources import Labels, Source
from finetune.training import Trained, train

CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class TensorSource:
    """A source of tensors in memory, (N, ...) float32."""

    inputs: Tensor
    labels: Labels
    cut: int = 0

    def serving(self, cut: int) -> Source:
        return self

    def batches(self, rows: Sequence[Labels], *, augment: bool, share: Share = WHOLE) -> Iterator[Tensor]:
        for numbers in rows:
            yield self.inputs[torch.from_numpy(numbers[share.places(len(numbers))])]


class Tiny(nn.Module):
    """Four stages with BatchNorm and dropout, in milliseconds."""

    def __init__(self, dropout: float) -> None:
        super().__init__()

        def block(n_in: int, n_out: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(n_in, n_out, 3, 2, 1), nn.BatchNorm2d(n_out), nn.ReLU(), nn.Dropout(dropout))

        self.conv1, self.layer1, self.layer2, self.layer3 = block(3, 6), block(6, 8), block(8, 8), block(8, 12)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(12, 7)

    def forward(self, images: Tensor) -> Tensor:
        features = self.layer3(self.layer2(self.layer1(self.conv1(images))))
        return self.fc(torch.flatten(self.pool(features), 1))


def tiny(n_classes: int = 3, *, dropout: float = 0.1) -> StagedModel:
    torch.manual_seed(5)
    staged = StagedModel(Tiny(dropout).requires_grad_(False), torch.zeros(1, 3, 16, 16))
    replace_head(staged, n_classes, seed=0)
    return staged


def torchvision_model(name: str, side: int, n_classes: int = 3) -> StagedModel:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).requires_grad_(False)
    staged = StagedModel(model, torch.zeros(1, 3, side, side))
    replace_head(staged, n_classes, seed=0)
    return staged


def pictures(n: int, *, side: int = 16, n_classes: int = 3, seed: int = 0) -> TensorSource:
    """Noise, each class brighter in a channel of its own."""
    generator = torch.Generator().manual_seed(seed)
    labels = np.arange(n) % n_classes
    inputs = torch.randn(n, 3, side, side, generator=generator)
    for row, label in enumerate(labels.tolist()):
        inputs[row, label % 3] += 1.0
    return TensorSource(inputs.to(memory_format=torch.channels_last), labels)


def digits(n: int, *, side: int, start: int = 0) -> TensorSource:
    """Of scikit-learn's, ten classes, in colour and enlarged."""
    data = load_digits()
    some = torch.from_numpy(data.images[start : start + n]).float()[:, None] / 8 - 1
    inputs = F.interpolate(some, size=(side, side), mode="bilinear").expand(-1, 3, -1, -1)
    return TensorSource(inputs.contiguous(memory_format=torch.channels_last), data.target[start : start + n])


def plan_for(staged: StagedModel, **flags: Any) -> Plan:
    flags = {"lr": 1e-2, "epochs": 2, **flags}
    return make_plan([stage.name for stage in staged.stages], staged.head_name, **flags)


def quick(staged: StagedModel, plan: Plan, *, n: int = 24, rows: Source | None = None, **given: Any) -> Trained:
    """Train on a few noise pictures."""
    ours = (
        "terms",
        "validation",
        "test",
        "ranks",
        "stop_after",
        "checkpoint",
        "fingerprint",
        "resume",
        "on_epoch",
        "on_step",
    )
    settings = Settings(**{"batch_size": 8, **{key: value for key, value in given.items() if key not in ours}})
    others = {"validation": pictures(9, seed=1), **{key: value for key, value in given.items() if key in ours}}
    return train(staged, plan, rows or pictures(n), settings=settings, device=CPU, **others)


def weights_of(staged: StagedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in staged.model.state_dict().items()}
