"""Trace a model to its torch.fx graph, and prove on an example that the graph computes the same.

Symbolic tracing after Reed et al. 2022 (https://arxiv.org/abs/2112.08429). Blocks stay whole; only containers are
traced through, and modules that wrap a row of like blocks (the encoder of a vision transformer) or the head.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from featcache.common.errors import UserError


class NotTraceableError(Exception):
    """torch.fx cannot follow the model, or nothing in it can be cut."""


class WholeTrunk(nn.Module):
    """The whole model up to its head, for a model that cannot be traced: a hook catches what the head is given.

    The hook is in a copy of the head, reached by copies of the modules around it, which share all else with the model;
    each pass makes its own. In the model's own head it would catch what other threads' passes give it.
    """

    def __init__(self, model: nn.Module, head_name: str) -> None:
        super().__init__()
        self.model = model
        self.head_name = head_name

    def forward(self, images: Tensor) -> Tensor:
        caught: list[Tensor] = []
        model = _copied_along(self.model, self.head_name.split("."))
        head = model.get_submodule(self.head_name)
        head.register_forward_pre_hook(lambda _module, inputs: caught.append(inputs[0]))
        model(images)
        return caught[-1]


def _copied_along(module: nn.Module, path: list[str]) -> nn.Module:
    """A shallow copy of a module, and within it of those on a path, with hooks and modules of their own."""
    copied = copy.copy(module)
    copied._forward_pre_hooks = module._forward_pre_hooks.copy()
    copied._modules = module._modules.copy()
    if path:
        copied._modules[path[0]] = _copied_along(module.get_submodule(path[0]), path[1:])
    return copied


class _Tracer(fx.Tracer):
    """Goes through containers, the given modules, and those that ``through`` names; the rest are leaves."""

    def __init__(self, through: Callable[[nn.Module], bool], modules: list[nn.Module]) -> None:
        super().__init__()
        self.through = through
        self.modules = modules

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not (_is_container(m) or self.through(m) or m in self.modules)


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _wraps_like_blocks(module: nn.Module) -> bool:
    """True for a module around a row of blocks of one type, as the encoder of a transformer is."""
    for child in module.children():
        if isinstance(child, (nn.Sequential, nn.ModuleList)):
            types = {type(block) for block in child.children()}
            if len(child) > 1 and len(types) == 1 and any(True for _ in next(child.children()).children()):
                return True
    return False


def trace(model: nn.Module) -> fx.Graph:
    """The model's operations in order, blocks whole.

    Raises:
        NotTraceableError: torch.fx cannot follow the model.
        UserError: it holds no linear layer at all.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise no_head(model)
    around_head = [module for name, module in model.named_modules() if linear[-1].startswith(name + ".")]
    _, *optional = inspect.signature(model.forward).parameters.values()
    defaults = {p.name: p.default for p in optional if p.default is not p.empty}
    failure = ""
    for rule in (_wraps_like_blocks, lambda _module: False):
        try:
            graph = _Tracer(rule, around_head).trace(model, defaults)
        except Exception as error:  # noqa: BLE001  any of the model's own code may fail under tracing
            failure = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        else:
            return graph_module(model, graph).graph
    raise NotTraceableError(f"torch.fx cannot trace it ({failure})")


def graph_module(model: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """The graph as a module in eval mode that shares the model's parameters, without what it does not use."""
    module = fx.GraphModule(model, graph).eval()
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def features_and_logits(model: nn.Module, trunk: nn.Module, example: Tensor) -> tuple[Tensor, Tensor]:
    """The trunk's features and the model's logits."""
    try:
        with torch.inference_mode():
            features, logits = trunk(example), model(example)
    except Exception as error:
        size = "x".join(str(n) for n in example.shape[-2:])
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{type(model).__name__} does not take {size} images ({reason}): choose another --image-size"
        ) from error
    if not isinstance(logits, Tensor):
        raise no_head(model)
    return features, logits


def run(model: nn.Module, graph: fx.Graph, example: Tensor) -> dict[fx.Node, Any]:
    """Every node's value on the example: tells tensors from sizes, gives the shapes, proves the trace right."""
    values: dict[fx.Node, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            values[n] = super().run_node(n)
            return values[n]

    logits = features_and_logits(model, nn.Identity(), example)[1]
    try:
        with torch.inference_mode():
            traced = Recorder(fx.GraphModule(model, graph), garbage_collect_values=False).run(example)
    except Exception as error:
        raise NotTraceableError(f"its trace does not run ({type(error).__name__})") from error
    if not torch.equal(traced, logits):
        raise NotTraceableError("its trace does not compute what the model does")
    return values


def no_head(model: nn.Module) -> UserError:
    """The error for a model from which no feature can be cached."""
    return UserError(
        f"{type(model).__name__} does not end in a linear layer on one vector an image, so it has no feature to cache; "
        "choose another backbone"
    )
