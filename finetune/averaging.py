"""Weights in, their running average out (EMA: Polyak & Juditsky 1992; Tarvainen & Valpola 2017, arXiv:1703.01780)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """A running average of some parameters: average = decay * average + (1 - decay) * parameter after each step.

    At first the decay is (1 + n) / (10 + n) after n steps, so that the average leaves the start behind soon.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters = parameters
        self.decay = decay
        self.n_steps = 0
        self.average = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        self.n_steps += 1
        weight = 1 - min(self.decay, (1 + self.n_steps) / (10 + self.n_steps))
        for name, parameter in self.parameters.items():
            self.average[name].lerp_(parameter, weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average in the parameters' place for the while."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.average[name])
            self.average[name].copy_(kept)

    def state(self) -> dict[str, int | Tensor]:
        return {**self.average, "": self.n_steps}

    @torch.no_grad()
    def load(self, state: Mapping[str, int | Tensor]) -> None:
        self.n_steps = int(state[""])
        for name, average in self.average.items():
            average.copy_(torch.as_tensor(state[name]))
