"""Cuts: every family, every cut, bit for bit; and what stages say of names, parameters and models that don't trace."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
import torchvision
from torch import Tensor, nn

from featcache.common.errors import UsageError, UserError
from featcache.models.stages import StagedModel

#: A model of each family, the side of its images, the length of its feature, and how many stages to expect.
FAMILIES = [
    ("resnet18", {}, 64, 512, 5),
    ("resnet50", {}, 64, 2048, 5),
    ("resnext50_32x4d", {}, 64, 2048, 5),
    ("wide_resnet50_2", {}, 64, 2048, 5),
    ("alexnet", {}, 64, 4096, 6),
    ("vgg11_bn", {}, 32, 4096, 9),
    ("vgg16", {}, 32, 4096, 14),
    ("mobilenet_v2", {}, 64, 1280, 19),
    ("mobilenet_v3_small", {}, 64, 1024, 14),
    ("efficientnet_b0", {}, 64, 1280, 9),
    ("convnext_tiny", {}, 64, 768, 8),
    ("densenet121", {}, 64, 1024, 8),
    ("regnet_y_400mf", {}, 64, 440, 5),
    ("vit_b_16", {"image_size": 32}, 32, 768, 13),
    ("swin_t", {}, 64, 768, 8),
    ("shufflenet_v2_x0_5", {}, 64, 1024, 5),
    ("timm/tf_efficientnet_lite0", {}, 64, 1280, 9),
    ("timm/vit_tiny_patch16_224", {"img_size": 32}, 32, 192, 13),
    ("timm/convnext_atto", {}, 64, 320, 5),
    ("timm/regnetx_002", {}, 64, 368, 5),
]


def build(name: str, **arguments: int) -> nn.Module:
    torch.manual_seed(0)
    if name.startswith("timm/"):
        timm = pytest.importorskip("timm")
        return timm.create_model(name.removeprefix("timm/"), **arguments)
    return torchvision.models.get_model(name, weights=None, **arguments)


@pytest.mark.parametrize(("name", "arguments", "side", "feature_dim", "n_stages"), FAMILIES, ids=lambda v: str(v))
def test_tail_of_trunk_is_the_model_at_every_cut(
    name: str, arguments: dict[str, int], side: int, feature_dim: int, n_stages: int
) -> None:
    model = build(name, **arguments).eval().to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, side, side).to(memory_format=torch.channels_last)
    staged = StagedModel(model, images[:1])
    assert not staged.reason
    assert (staged.feature_dim, len(staged.stages)) == (feature_dim, n_stages)
    with torch.inference_mode():
        logits = model(images)
        for cut, stage in enumerate(staged.stages, start=1):
            features = staged.trunk(cut)(images)
            assert features.shape[1:] == stage.shape
            assert torch.equal(staged.tail(cut)(features), logits), stage.name
    assert features.shape == (2, feature_dim)
    parameters = [p for stage in staged.stages for p in stage.parameters]
    own = {name for name, _ in model.named_parameters() if not name.startswith(staged.head_name + ".")}
    assert len(parameters) == len(set(parameters))
    assert set(parameters) == own
    assert sum(stage.n_parameters for stage in staged.stages) == sum(model.get_parameter(p).numel() for p in own)


def test_stages_are_named_as_people_know_them() -> None:
    staged = StagedModel(build("resnet18"), torch.zeros(1, 3, 32, 32))
    assert [stage.name for stage in staged.stages] == ["stem", "layer1", "layer2", "layer3", "layer4"]
    assert staged.head_name == "fc"
    assert staged.stages[-1].shape == (512,)
    assert staged.stages[-2].shape == (256, 2, 2)
    assert staged.stages[-1].n_parameters == 8_393_728
    assert staged.cut_after("layer3") == 4
    with pytest.raises(UsageError, match="unknown stage 'layer5': expected one of stem, layer1"):
        staged.cut_after("layer5")


class BranchesOnData(nn.Module):
    """What torch.fx can't trace: its path depends on the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(images)
        return self.fc(features if features.sum() > 0 else -features)


def test_a_model_that_does_not_trace_is_one_stage() -> None:
    model = BranchesOnData()
    images = torch.randn(3, 3, 16, 16)
    staged = StagedModel(model, images[:1])
    assert [stage.name for stage in staged.stages] == ["stem"]
    assert "torch.fx cannot trace it" in staged.reason
    with torch.inference_mode():
        assert torch.equal(staged.tail()(staged.trunk()(images)), model(images))
    with pytest.raises(UsageError, match="offers no inner cut"):
        staged.cut_after("layer4")


class MeetsAroundItsHead(BranchesOnData):
    """Two passes at once meet before the head, and again after it."""

    meet: Callable[[], object] = staticmethod(lambda: None)

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(images)
        self.meet()
        logits = self.fc(features if features.sum() > 0 else -features)
        self.meet()
        return logits


def test_threads_that_share_a_model_that_does_not_trace_get_their_own_features() -> None:
    images = torch.randn(2, 3, 16, 16)
    staged = StagedModel(MeetsAroundItsHead(), images[:1])
    assert staged.reason
    trunk = staged.trunk()
    with torch.no_grad():
        expected = [trunk(image) for image in images[:, None]]
        staged.model.meet = Barrier(2, timeout=30).wait
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(torch.no_grad()(trunk), images[:, None]))
    assert not torch.equal(*expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_the_trunk_of_a_model_that_does_not_trace_follows_the_model() -> None:
    model = BranchesOnData()
    trunk = StagedModel(model, torch.randn(1, 3, 16, 16)).trunk()
    images = torch.randn(2, 3, 16, 16)
    assert {name.removeprefix("model.") for name, _ in trunk.named_parameters()} == dict(
        model.named_parameters()
    ).keys()
    with torch.no_grad():
        model.fc = nn.Linear(4, 7)
        model.body[0].weight.zero_()
        model.body[0].bias.fill_(3)
        assert torch.equal(trunk(images), torch.full((2, 4), 3.0))
    trunk(images).sum().backward()
    assert model.body[0].bias.grad is not None
    assert model.fc.weight.grad is None


class TracesWrongly(nn.Module):
    """What torch.fx traces without complaint into something else: a counter that Python keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 5)
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.fc(self.conv(images).mean((2, 3)) * (2.0 if self.calls > 1 else 1.0))


def test_a_trace_that_computes_something_else_is_not_believed() -> None:
    staged = StagedModel(TracesWrongly(), torch.randn(1, 3, 8, 8))
    assert "does not compute what the model does" in staged.reason


def test_a_model_without_a_linear_head_is_refused() -> None:
    with pytest.raises(UserError, match="SqueezeNet does not end in a linear layer"):
        StagedModel(build("squeezenet1_0"), torch.zeros(1, 3, 64, 64))


def test_an_image_size_that_the_model_refuses_is_told() -> None:
    with pytest.raises(UserError, match="does not take 48x48 images .*: choose another --image-size"):
        StagedModel(build("vit_b_16", image_size=32), torch.zeros(1, 3, 48, 48))
