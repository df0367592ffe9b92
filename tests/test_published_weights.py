"""The layouts in which torchvision publishes weights: names that its own loaders rename, versions of modules."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import DenseNet, MNASNet, VisionTransformer, densenet, get_model, list_models, regnet
from torchvision.models.densenet import _DenseLayer
from torchvision.models.vision_transformer import MLPBlock

from featcache.common.errors import UserError
from featcache.models import weights

MODELS = list_models(module=torchvision.models)
AFFECTED = [name for name in MODELS if name.startswith(("densenet", "mnasnet", "vit_"))]


def published(model: nn.Module) -> OrderedDict[str, Tensor]:
    """The model's weights by the names of torchvision's files: the renaming of its loaders, turned round."""
    renamed = {name: name for name in model.state_dict()}
    for prefix, module in model.named_modules():
        for name in module.state_dict():
            if isinstance(module, MLPBlock):
                old = {"0": "linear_1", "3": "linear_2"}[name[0]]
                renamed[f"{prefix}.{name}"] = f"{prefix}.{old}{name[1:]}"
            elif isinstance(module, _DenseLayer):
                renamed[f"{prefix}.{name}"] = f"{prefix}.{re.sub('^(norm|conv)', lambda kind: kind[0] + '.', name)}"
    state = OrderedDict((renamed[name], tensor) for name, tensor in model.state_dict().items())
    if isinstance(model, DenseNet):  # from before BatchNorm counted
        state = OrderedDict((name, tensor) for name, tensor in state.items() if "num_batches" not in name)
    return state


def tiny_densenet() -> nn.Module:
    return DenseNet(growth_rate=4, block_config=(1, 2, 1, 1), num_init_features=8, num_classes=5)


def tiny_vit() -> nn.Module:
    return VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=5
    )


def tiny_mnasnet() -> nn.Module:
    return MNASNet(0.1, num_classes=5)


def with_values(build: Callable[[], nn.Module]) -> nn.Module:
    """The model with random numbers for every weight and statistic."""
    model = build()
    generator = torch.Generator().manual_seed(3)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def torchvisions_own(model: nn.Module, state: OrderedDict[str, Tensor]) -> None:
    """Load as torchvision loads what it downloads."""

    class Published:
        def get_state_dict(self, **_: object) -> OrderedDict[str, Tensor]:
            return state

    if isinstance(model, DenseNet):
        densenet._load_state_dict(model, Published(), progress=False)
    else:
        model.load_state_dict(state)


def assert_equal(found: nn.Module, expected: nn.Module) -> None:
    there = expected.state_dict()
    assert found.state_dict().keys() == there.keys()
    assert all(torch.equal(tensor, there[name]) for name, tensor in found.state_dict().items())


@pytest.mark.parametrize("build", [tiny_densenet, tiny_vit, tiny_mnasnet])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("layout", ["today", "published"])
def test_each_layout_loads_to_the_bit(build: Callable[[], nn.Module], suffix: str, layout: str, tmp_path: Path) -> None:
    """With the versions that a .pth file has beside its tensors, and without."""
    model, path = with_values(build), tmp_path / f"w{suffix}"
    state = model.state_dict() if layout == "today" else published(model)
    if layout == "published":
        state._metadata = OrderedDict(model.state_dict()._metadata)
        if not isinstance(model, MNASNet):  # its files are of today's version
            state._metadata |= {name: {"version": 1} for name in state._metadata}
        own = build()
        torchvisions_own(own, OrderedDict(state) if isinstance(model, DenseNet) else state)
        assert_equal(own, model)
    if suffix == ".pth":
        torch.save(state, path)
    else:
        pytest.importorskip("safetensors.torch").save_file(dict(state), path)
    found = build()
    weights.load_into(found, weights.read(path)[0], name=path.name, backbone="tiny")
    assert_equal(found, model)


@pytest.mark.filterwarnings("ignore:A new version of MNASNet")
@pytest.mark.parametrize("with_version", [True, False])
def test_the_first_version_of_mnasnet(with_version: bool, tmp_path: Path) -> None:
    """Its stem was as wide at every size; the model becomes such a one."""
    model = tiny_mnasnet()
    first = OrderedDict(model.state_dict())
    first._metadata = {"": {"version": 1}}
    with pytest.raises(RuntimeError):  # of shapes, after the model has taken the stem of the first version
        model.load_state_dict(first)
    model = with_values(lambda: model)
    assert model.layers[0].out_channels == 32
    torch.save(model.state_dict() if with_version else dict(model.state_dict()), tmp_path / "w.pth")
    found = tiny_mnasnet()
    weights.load_into(found, weights.read(tmp_path / "w.pth")[0], name="w.pth", backbone="tiny")
    assert_equal(found, model)
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(found.eval()(images), model(images))
    assert found.state_dict()._metadata[""]["version"] == 1  # as whoever reads what is saved of it must know


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.layers.encoder_layer_1.mlp.linear_2.bias": None}, "encoder_layer_1.mlp.3.bias is missing$"),
        ({"more": torch.zeros(1)}, "w.pth does not fit tiny: more is not in the model$"),
        (
            {"encoder.layers.encoder_layer_0.mlp.linear_1.weight": torch.zeros(16, 9)},
            r"encoder_layer_0.mlp.0.weight is \(16, 9\), expected \(16, 8\)$",
        ),
        (
            {"encoder.layers.encoder_layer_0.mlp.linear_1.bias": torch.zeros(16, dtype=torch.int8)},
            r"encoder_layer_0.mlp.0.bias is of torch.int8, expected torch.float32$",
        ),
    ],
)
def test_what_differs_in_an_old_layout_is_named(change: dict[str, Tensor | None], message: str) -> None:
    state = {**published(with_values(tiny_vit)), **change}
    with pytest.raises(UserError, match=message):
        weights.load_into(tiny_vit(), {n: t for n, t in state.items() if t is not None}, name="w.pth", backbone="tiny")


def test_both_names_of_one_tensor_are_refused() -> None:
    model = with_values(tiny_densenet)
    with pytest.raises(UserError, match=r"denselayer1.norm.1.weight is not in the model; "):
        weights.load_into(tiny_densenet(), {**model.state_dict(), **published(model)}, name="w.pth", backbone="tiny")


@pytest.mark.parametrize(
    "metadata",
    [7, {"": 7}, {"": {"version": "new"}}, {"": {"version": 99}}, {3: {"version": 2}}],
)
def test_versions_that_make_no_sense_are_no_obstacle(metadata: object, tmp_path: Path) -> None:
    model = with_values(tiny_mnasnet)
    state = model.state_dict()
    state._metadata = metadata
    torch.save(state, tmp_path / "w.pth")
    found = tiny_mnasnet()
    weights.load_into(found, weights.read(tmp_path / "w.pth")[0], name="w.pth", backbone="tiny")
    assert_equal(found, model)


def test_versions_lose_the_prefix_that_names_lose(tmp_path: Path) -> None:
    model = with_values(tiny_vit)
    torch.save(nn.DataParallel(model).state_dict(), tmp_path / "w.pth")
    read, _ = weights.read(tmp_path / "w.pth")
    assert read._metadata == {name: entry for name, entry in model.state_dict()._metadata.items() if "version" in entry}


def test_a_head_without_bias_may_have_another_length() -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    weights.load_into(model, {"0.weight": torch.ones(7, 4)}, name="w.pth", backbone="tiny")
    assert torch.equal(model(torch.ones(1, 4)), torch.full((1, 7), 4.0))


@pytest.mark.filterwarnings("ignore:for .*num_batches_tracked. copying from a non-meta")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in AFFECTED else pytest.mark.slow) for name in MODELS]
)
def test_the_published_names_load(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By names and shapes alone; the models without old names are slow, and the others their quicker twins."""
    block_params = regnet.BlockParams.from_init_params

    def computed(*numbers: int, **more: float) -> object:
        with torch.device("cpu"):
            return block_params(*numbers, **more)

    monkeypatch.setattr(regnet.BlockParams, "from_init_params", computed)
    without_init = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):
        model = get_model(name, weights=None, **without_init)
    state = published(model)
    assert (state.keys() == model.state_dict().keys()) == (not name.startswith(("densenet", "vit_")))
    weights.load_into(model, state, name=name, backbone=name)  # raises where a name is left over, or is missing
