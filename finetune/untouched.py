"""A model in; the same model lent out for trials, and every bit of it put back afterwards, whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back parameters, buffers, gradients, what requires one, and modes, also where an exception flies.

    Tensors keep their places: they are copied into. The copies are in the main memory; where the model is, and its
    memory order, are left as they are.
    """
    values = {name: tensor.detach().to("cpu", copy=True) for name, tensor in _tensors(model)}
    gradients = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    for parameter in model.parameters():
        parameter.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in _tensors(model):
                tensor.copy_(values[name])
        for parameter, required, gradient in gradients:
            parameter.requires_grad_(required)
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        for module, training in modes:
            module.training = training


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, also those that no state dict holds; buffers are other objects after a move."""
    return chain(model.named_parameters(), model.named_buffers())
