"""Copy a frozen trunk for reduced precision: batch norms folded into convolutions, weights cast once.

The trunk itself is left alone: in float32 it is the reference, and nothing about it changes.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

#: Layers whose weights autocast would cast anew at every forward pass.
_CAST = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def folded(trunk: nn.Module) -> nn.Module:
    """A copy in which no batch norm follows a convolution: its scale and shift are in the convolution's weights.

    Exact up to rounding in float32 (Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 3.2). Blocks that
    torch.fx cannot look into, and batch norms that do more than normalise, are copied as they are.
    """
    trunk = copy.deepcopy(trunk)
    for parent in [trunk, *(module for module in trunk.modules() if module is not trunk)]:
        graph = _graph(parent)
        if graph is None:
            continue
        for conv_name, norm_name in _pairs(parent, graph):
            conv, norm = parent.get_submodule(conv_name), parent.get_submodule(norm_name)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):  # not folded by way of an ancestor
                _replace(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                _replace(parent, norm_name, _rest(norm))
    return trunk


def cast(trunk: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Put the weights of convolutions and linear layers into another type, in place; autocast sees to all else."""
    for module in trunk.modules():
        if isinstance(module, _CAST):
            module.to(dtype)
    return trunk.to(memory_format=torch.channels_last)


def _graph(module: nn.Module) -> fx.Graph | None:
    """Its operations, children whole; None where torch.fx cannot follow it or there is nothing to fold."""
    kinds = {type(child) for child in module.children()}
    if isinstance(module, fx.GraphModule):
        return module.graph
    if not any(issubclass(kind, nn.Conv2d) for kind in kinds) or not any(issubclass(k, nn.BatchNorm2d) for k in kinds):
        return None

    class ChildrenWhole(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return True

    try:
        return ChildrenWhole().trace(module)
    except Exception:  # noqa: BLE001  any of the model's own code may fail under tracing
        return None


def _pairs(parent: nn.Module, graph: fx.Graph) -> list[tuple[str, str]]:
    """Names of convolutions whose one user is a batch norm, with its name; each runs once."""
    runs = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    pairs = []
    for node in graph.nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        conv, norm = parent.get_submodule(str(source.target)), parent.get_submodule(str(node.target))
        once = runs.count(str(source.target)) == runs.count(str(node.target)) == 1
        if once and _is_linear(conv) and _is_foldable(norm):
            pairs.append((str(source.target), str(node.target)))
    return pairs


def _is_linear(conv: nn.Module) -> bool:
    """A plain convolution, or timm's that pads as TensorFlow does; others may standardise their weights first."""
    return type(conv) is nn.Conv2d or (isinstance(conv, nn.Conv2d) and type(conv).__name__ == "Conv2dSame")


def _is_foldable(norm: nn.Module) -> bool:
    """A batch norm with statistics of its own, or timm's, which applies an activation after it."""
    plain = type(norm) is nn.BatchNorm2d
    with_activation = type(norm).__name__ == "BatchNormAct2d" and {"drop", "act"} == {
        n for n, _ in norm.named_children()
    }
    return (plain or with_activation) and isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None


def _rest(norm: Any) -> nn.Module:
    """What a batch norm does beside normalising."""
    return nn.Identity() if type(norm) is nn.BatchNorm2d else nn.Sequential(norm.drop, norm.act)


def _replace(parent: nn.Module, name: str, module: nn.Module) -> None:
    path, _, last = name.rpartition(".")
    setattr(parent.get_submodule(path), last, module)
