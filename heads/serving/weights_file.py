"""A run in; its weights as a .safetensors file that the backbone's own library loads, and lines that load it, out.

The head stands in the place of the model's last linear layer, under its name, scaler and temperature folded in.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from featcache.common.errors import UserError
from featcache.models.backbones import OFFLINE_BACKBONE
from featcache.models.weights import load_into
from featcache.sources.preprocessing import Preprocessing
from heads.predictors import LinearHead, MLPHead
from heads.serving.head_layers import head_layers
from heads.serving.loaded_run import LoadedRun


def whole_model(run: LoadedRun) -> nn.Module:
    """A copy of the backbone with the head as its last layer: normalised images (N, 3, S, S) to scores (N, n_classes).

    Raises:
        UserError: the head is no linear layer or MLP on the backbone's last features.
    """
    staged = run.backbone.staged
    if not isinstance(run.head, LinearHead | MLPHead):
        raise UserError(
            f"{run.folder}: a head of the kind {run.head.KIND} is no last layer of a network: take --format onnx or "
            "torch, which hold any head"
        )
    if run.embeddings[0].cut not in (None, len(staged.stages)):
        raise UserError(f"{run.folder}: its head is on an inner stage of the backbone: take --format onnx or torch")
    model = copy.deepcopy(staged.model)
    parent, _, name = staged.head_name.rpartition(".")
    setattr(model.get_submodule(parent), name, head_layers(run.head))
    return model.eval()


def write(model: nn.Module, path: Path, texts: Mapping[str, str]) -> None:
    """Write the state dict, with `texts` as the file's metadata."""
    from safetensors.torch import save_file

    # tensors that share memory are written once each; the format asks for contiguous ones
    state = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, path, metadata=dict(texts))


def reader(
    path: Path, model: nn.Module, preprocessing: Preprocessing, *, probabilistic: bool
) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """A function from images (N, 3, S, S) float32 from 0 to 1 to probabilities, or to scores where there are none.

    Args:
        path: of the weights.
        model: of the file's architecture; it is given the file's weights.
        preprocessing: tells mean and standard deviation.
        probabilistic: whether the softmax of the scores is a probability.
    """
    from safetensors.torch import load_file

    load_into(model, load_file(path), name=path.name, backbone=type(model).__name__)
    mean = torch.tensor(preprocessing.mean).view(1, 3, 1, 1)
    std = torch.tensor(preprocessing.std).view(1, 3, 1, 1)

    def run(images: NDArray[Any]) -> NDArray[np.float32]:
        with torch.inference_mode():
            scores = model((torch.from_numpy(images) - mean) / std)
            found: NDArray[np.float32] = (scores.softmax(1) if probabilistic else scores).numpy()
        return found

    return run


def loading_lines(run: LoadedRun) -> str:
    """Lines of Python that make the model ``model`` of the weights in the file ``path``."""
    from torchvision.models import MNASNet

    staged, head = run.backbone.staged, run.head
    parent, _, name = staged.head_name.rpartition(".")
    n_classes, n_features = head.n_classes, head.n_features
    layer = f"torch.nn.Linear({n_features}, {n_classes})"
    if isinstance(head, MLPHead):
        n_hidden = len(head.hidden_bias)
        first, last = f"torch.nn.Linear({n_features}, {n_hidden})", f"torch.nn.Linear({n_hidden}, {n_classes})"
        layer = f"torch.nn.Sequential({first}, torch.nn.ReLU(), {last})"
    library, call = _building(run.backbone.name, staged.model)
    state = "load_file(path)"
    versions = []
    if isinstance(staged.model, MNASNet):  # which refuses weights without a version of its layout
        library, state = f"{library}, collections", "state"
        versions = [
            "state = collections.OrderedDict(load_file(path))",
            f"state._metadata = {{'': {{'version': {staged.model._version}}}}}",
        ]
    lines = [
        f"import torch, {library}",
        "from safetensors.torch import load_file",
        f"model = {call}",
        f"setattr(model.get_submodule({parent!r}), {name!r}, {layer})",
        *versions,
        f"model.load_state_dict({state})",
        "model.eval()",
    ]
    return "\n".join(lines)


def _building(backbone: str, model: nn.Module) -> tuple[str, str]:
    """The library of a backbone, and the call that builds it without weights."""
    if backbone == OFFLINE_BACKBONE:
        return "timm", "timm.create_model('tf_efficientnet_lite0')"
    if backbone.startswith("timm/"):
        return "timm", f"timm.create_model({backbone.removeprefix('timm/')!r})"
    more = ""
    if backbone in ("googlenet", "inception_v3"):
        more = ", transform_input=True, init_weights=False"
    elif backbone.startswith("vit_"):
        more = f", image_size={model.image_size}"
    return "torchvision", f"torchvision.models.get_model({backbone!r}, weights=None{more})"
