"""Divide a model into an ordered list of named stages, and cut it between any two of them.

A stage is a run of consecutive operations that holds parameters and ends where exactly one tensor is live, so that the
model can be cut there: ``tail(trunk(x))`` is the whole model, operation for operation. The last linear layer is the
head; it is no stage. Everything else that the project says about parts of a model (what is frozen, what it costs, which
features are cached) is a statement about this list.

How the model becomes a list of operations is ``featcache/models/tracing.py``'s part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, fx, nn

from featcache.common.errors import UsageError
from featcache.models.tracing import (
    NotTraceableError,
    WholeTrunk,
    features_and_logits,
    graph_module,
    no_head,
    run,
    trace,
)

#: Modules are opened, the longest first, until there are at least this many stages.
MIN_STAGES = 4


@dataclass(frozen=True)
class Stage:
    """One stage of a backbone.

    Attributes:
        name: the first stage is ``stem``; the others are named after the module that they come from.
        parameters: the names of its parameters, as in ``model.named_parameters()``.
        modules: the names of the modules that it runs.
        n_parameters: how many numbers its parameters hold.
        shape: of its output for one image, without the batch dimension.
    """

    name: str
    parameters: tuple[str, ...]
    modules: tuple[str, ...]
    n_parameters: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Segment:
    """The nodes between two consecutive legal cuts; ``last`` computes the one live tensor."""

    nodes: tuple[fx.Node, ...]
    last: fx.Node
    modules: tuple[str, ...]
    parameters: tuple[str, ...]


class StagedModel:
    """A model divided into stages.

    Args:
        model: maps a batch ``(N, 3, H, W)`` to logits; put in eval mode, since that is what is traced.
        example: one batch ``(1, 3, H, W)`` float32, run once to learn the shapes.

    Attributes:
        stages: the stages in order, without the head. A model that cannot be traced has one stage.
        head_name, head: the last linear layer.
        feature_dim: the length of its input.
        reason: why the model offers no inner cut, or an empty string.

    Raises:
        UserError: the model has no final linear layer on a vector, or does not take images of this size.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self.model = model.eval()
        self.reason = ""
        self._graph: fx.Graph | None = None
        self._ends: list[fx.Node] = []
        try:
            self.stages = self._divide(example)
        except NotTraceableError as error:
            self.reason = str(error)
            self.stages = (self._whole(example),)

    @property
    def head(self) -> nn.Linear:
        head = self.model.get_submodule(self.head_name)
        assert isinstance(head, nn.Linear)
        return head

    @property
    def feature_dim(self) -> int:
        return self.head.in_features

    def cut_after(self, name: str) -> int:
        """The cut (how many leading stages run) that ends with the named stage."""
        names = [stage.name for stage in self.stages]
        if name not in names:
            hint = f"; it offers no inner cut: {self.reason}" if self.reason else ""
            raise UsageError(f"unknown stage {name!r}: expected one of {', '.join(names)}{hint}")
        return names.index(name) + 1

    def trunk(self, cut: int | None = None) -> nn.Module:
        """The leading ``cut`` stages (default: all) as a module that shares the model's parameters."""
        cut = self._checked(cut)
        if self._graph is None:
            return WholeTrunk(self.model, self.head_name)
        end = self._ends[cut - 1]
        return self._module(fx.Graph(), None, end)

    def tail(self, cut: int | None = None) -> nn.Module:
        """What ``trunk(cut)`` leaves, the head included: a module from the cut's tensor to the logits."""
        cut = self._checked(cut)
        if self._graph is None:
            return self.head
        return self._module(fx.Graph(), self._ends[cut - 1], None)

    def part(self, start: int, stop: int | None) -> nn.Module:
        """Stages ``start`` to ``stop`` - 1, counted from 0, as a module that shares the model's parameters.

        Args:
            start: 0 begins with the images, any other with the output of the stage before.
            stop: None runs to the logits.
        """
        assert 0 <= start < (len(self.stages) + 1 if stop is None else self._checked(stop))
        if self._graph is None:
            return self.tail() if start else self.model if stop is None else self.trunk()
        ends = [None, *self._ends]
        return self._module(fx.Graph(), ends[start], None if stop is None else ends[stop])

    def _checked(self, cut: int | None) -> int:
        cut = len(self.stages) if cut is None else cut
        if not 1 <= cut <= len(self.stages):
            raise UsageError(f"cut {cut} is outside 1 to {len(self.stages)}")
        return cut

    def _module(self, graph: fx.Graph, start: fx.Node | None, end: fx.Node | None) -> fx.GraphModule:
        """The operations after ``start`` up to and with ``end``, copied in order."""
        assert self._graph is not None
        copied: dict[fx.Node, fx.Node] = {}
        running = start is None
        if start is not None:
            copied[start] = graph.placeholder("features")
        for node in self._graph.nodes:
            if node.op == "get_attr" or (running and node.op != "output"):
                copied[node] = graph.node_copy(node, copied.__getitem__)
            if node is start:
                running = True
            if node is end or node.op == "output":
                result = node if node is end else node.args[0]
                graph.output(fx.map_arg(result, copied.__getitem__))
                break
        return graph_module(self.model, graph)

    def _divide(self, example: Tensor) -> tuple[Stage, ...]:
        graph = trace(self.model)
        values = run(self.model, graph, example)
        head = _find_head(self.model, graph, values)
        self.head_name = str(head.target)
        groups = _grouped(self.model, list(_segments(self.model, graph, head, values)))
        self._graph = graph
        self._ends = [group[-1].last for _, group in groups]
        return tuple(self._stage(name, group, values) for name, group in groups)

    def _stage(self, name: str, group: list[_Segment], values: dict[fx.Node, Any]) -> Stage:
        parameters = tuple(dict.fromkeys(p for segment in group for p in segment.parameters))
        count = sum(self.model.get_parameter(p).numel() for p in parameters)
        modules = tuple(m for segment in group for m in segment.modules)
        return Stage(name, parameters, modules, count, tuple(values[group[-1].last].shape[1:]))

    def _whole(self, example: Tensor) -> Stage:
        """The model as one stage; its head is the last linear layer, provided that it makes the logits."""
        linear = [name for name, module in self.model.named_modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise no_head(self.model)
        self.head_name = linear[-1]
        features, logits = features_and_logits(self.model, WholeTrunk(self.model, self.head_name), example)
        with torch.inference_mode():
            makes_logits = features.ndim == 2 and torch.equal(self.head(features), logits)
        if not makes_logits:
            raise no_head(self.model)
        own = {f"{self.head_name}.{name}" for name, _ in self.head.named_parameters()}
        parameters = tuple(name for name, _ in self.model.named_parameters() if name not in own)
        modules = tuple(name for name, _ in self.model.named_children() if name != self.head_name)
        count = sum(self.model.get_parameter(name).numel() for name in parameters)
        return Stage("stem", parameters, modules, count, tuple(features.shape[1:]))


def _find_head(model: nn.Module, graph: fx.Graph, values: dict[fx.Node, Any]) -> fx.Node:
    for node in reversed(list(graph.nodes)):
        if node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), nn.Linear):
            source = node.args[0]
            if isinstance(source, fx.Node) and isinstance(values[source], Tensor) and values[source].ndim == 2:
                return node
            break
    raise no_head(model)


def _segments(model: nn.Module, graph: fx.Graph, head: fx.Node, values: dict[fx.Node, Any]) -> Iterator[_Segment]:
    """The pieces between legal cuts, from the image to the head's input.

    Parameters fetched by name (``get_attr``) are never live across a cut: each side fetches its own.
    """
    nodes = list(graph.nodes)
    place = {node: i for i, node in enumerate(nodes)}
    last_use = {node: max((place[user] for user in node.users), default=-1) for node in nodes}
    live: set[fx.Node] = set()
    pending: list[fx.Node] = []
    for i, node in enumerate(nodes[: place[head]]):
        live = {n for n in live if last_use[n] > i}
        if node.op != "get_attr" and last_use[node] > i:
            live.add(node)
        if node.op == "placeholder":
            continue
        pending.append(node)
        if live == {node} and isinstance(values[node], Tensor) and values[node].ndim >= 2:
            modules = tuple(str(n.target) for n in pending if n.op == "call_module")
            yield _Segment(tuple(pending), node, modules, _parameters(model, pending))
            pending = []
    if pending:
        raise NotTraceableError("the input of its head is not its only live tensor")


def _parameters(model: nn.Module, nodes: list[fx.Node]) -> tuple[str, ...]:
    """Names of the parameters that the nodes use: their modules' own, then those that they fetch by name."""
    names: dict[str, None] = {}
    for node in nodes:
        if node.op == "call_module":
            for name, _ in model.get_submodule(str(node.target)).named_parameters():
                names[f"{node.target}.{name}"] = None
    known = {name for name, _ in model.named_parameters()}
    fetched = [str(source.target) for node in nodes for source in node.all_input_nodes if source.op == "get_attr"]
    return tuple(names | {name: None for name in fetched if name in known})


def _grouped(model: nn.Module, segments: list[_Segment]) -> list[tuple[str, list[_Segment]]]:
    """Segments gathered into named stages: one a module, the longest module opened while there are too few."""
    pieces = _pieces(model, segments)
    if not pieces:
        raise NotTraceableError("no module of it holds parameters before the head")
    opened: set[str] = {""}
    while True:
        groups = [(name, list(run)) for name, run in groupby(pieces, key=lambda piece: _name(piece[0], opened))]
        long = [(len(run), name) for name, run in groups if len(run) > 1]
        if len(groups) >= MIN_STAGES or not long:
            break
        opened.add(max(long)[1])
    names = ["stem", *(name for name, _ in groups[1:])]
    if len(set(names)) < len(names):
        raise NotTraceableError("its modules run more than once")
    return [(name, [s for _, piece in run for s in piece]) for name, (_, run) in zip(names, groups, strict=True)]


def _pieces(model: nn.Module, segments: list[_Segment]) -> list[tuple[str, list[_Segment]]]:
    """Each segment that holds weights, under the name of the module, with those after it that hold none.

    A layer without parameters, one that only normalises (its parameters are vectors), and a parameter that is no
    layer's (a class token, a position embedding) belong to the weights before them.
    """
    pieces: list[tuple[str, list[_Segment]]] = []
    early: list[_Segment] = []
    for segment in segments:
        weighty = [m for m in segment.modules if _holds_weights(model.get_submodule(m))]
        if weighty:
            pieces.append((weighty[0], [*early, segment]))
            early = []
        elif pieces:
            pieces[-1][1].append(segment)
        else:
            early.append(segment)
    return pieces


def _holds_weights(module: nn.Module) -> bool:
    return any(p.numel() > max(p.shape, default=0) for p in module.parameters())


def _name(module: str, opened: set[str]) -> str:
    """The first of the module's ancestors (or itself) that is not opened."""
    words = module.split(".")
    return next((name for n in range(1, len(words)) if (name := ".".join(words[:n])) not in opened), module)
