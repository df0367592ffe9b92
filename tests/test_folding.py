"""Folding batch norms: exact up to rounding, for every family, with the trunk itself left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featcache.engines.folding import cast, folded
from featcache.models.backbones import load_backbone


def norms(module: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


def with_statistics(module: nn.Module) -> None:
    """Batch norms as training leaves them: random ones would fold to nothing."""
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for values, low, high in (
                (part.running_mean, -0.2, 0.2),
                (part.running_var, 0.5, 2.0),
                (part.weight, 0.5, 1.5),
                (part.bias, -0.2, 0.2),
            ):
                values.data.uniform_(low, high, generator=generator)


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("resnet18", 0),
        ("mobilenet_v2", 0),
        pytest.param("vgg16_bn", 0, marks=pytest.mark.slow),  # of half a gigabyte; folds as the others do
        ("densenet121", 62),  # these come before a convolution, not after one
        ("efficientnet_b0", 0),
        ("googlenet", 0),
        ("vit_b_16", 0),
        ("timm/tf_efficientnet_lite0", 0),
    ],
)
def test_the_folded_trunk_computes_the_same(name: str, left: int) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    size = 224 if name == "vit_b_16" else 64
    trunk = load_backbone(name, weights="none", image_size=size).staged.trunk()
    with_statistics(trunk)
    before = {key: value.clone() for key, value in trunk.state_dict().items()}
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    images = images.to(memory_format=torch.channels_last)
    ready = folded(trunk)
    with torch.inference_mode():
        expected, found = trunk(images), ready(images)
    assert norms(ready) == left
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    assert norms(trunk) == 0 or left < norms(trunk)
    assert all(torch.equal(value, before[key]) for key, value in trunk.state_dict().items())


class _Standardised(nn.Conv2d):
    """A convolution whose weights are standardised before they are used, so that no scale can be folded into them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = (self.weight - self.weight.mean()) / self.weight.std()
        return nn.functional.conv2d(x, weight, self.bias)


class _Shared(nn.Module):
    """One convolution before two batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.other = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(self.conv(x)) + self.other(self.conv(x))


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(_Standardised(3, 4, 3), nn.BatchNorm2d(4)),
        nn.Sequential(_Shared()),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
    ],
)
def test_what_can_not_be_folded_stays(module: nn.Module) -> None:
    module.eval()
    with_statistics(module) if module[-1] is not module[0] and module[-1].running_var is not None else None
    images = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(folded(module)(images), module(images))
    assert norms(folded(module)) == norms(module)


def test_weights_are_cast_once_and_norms_stay() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LayerNorm(14), nn.Linear(14, 2))
    cast(module, torch.bfloat16)
    assert [part.weight.dtype for part in module] == [torch.bfloat16, torch.float32, torch.bfloat16]
