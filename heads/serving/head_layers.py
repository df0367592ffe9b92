"""A fitted head in; the same as a torch module, features (N, D) to scores (N, n_classes), for a graph to hold, out.

A scaler in front of a linear layer is folded into it. Each module computes what its head's ``scores`` computes by
numpy: in float32, and in float64 where the head does.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from heads.kernel_heads import LandmarkHead, SupportVectorHead
from heads.neighbors import NeighborHead
from heads.predictors import ABSENT, Head, LinearHead, MLPHead
from heads.standardization import Floats

_FLOOR = float(np.finfo(np.float64).eps)  # smallest probability that neighbours' votes give, as in heads.neighbors


def head_layers(head: Head) -> nn.Module:
    """The head as a module in eval mode; its parameters ask for no gradient.

    Args:
        head: linear, MLP, neighbours, support vectors or landmarks.
    """
    made: nn.Module
    match head:
        case LinearHead():
            made = _linear(head)
        case MLPHead():
            made = _mlp(head)
        case NeighborHead():
            made = _Neighbors(head)
        case SupportVectorHead():
            made = _SupportVectors(head)
        case _:
            assert isinstance(head, LandmarkHead)
            made = _Landmarks(head)
    return made.eval().requires_grad_(False)


def _layer(weight: NDArray[np.floating[Any]], bias: NDArray[np.floating[Any]]) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight.astype(np.float32)))
        layer.bias.copy_(torch.from_numpy(bias.astype(np.float32)))
    return layer


def _linear(head: LinearHead) -> nn.Module:
    return _layer(*head.folded())


def _mlp(head: MLPHead) -> nn.Module:
    first = LinearHead(
        mean=head.mean, scale=head.scale, weight=head.hidden_weight, bias=head.hidden_bias, probabilistic=False
    )
    return nn.Sequential(_layer(*first.folded()), nn.ReLU(), _layer(head.weight, head.bias))


class _WithTensors(nn.Module):
    """A module whose arrays are buffers: they go into the file as weights do."""

    def _keep(self, **arrays: NDArray[Any]) -> None:
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(array)))


class _Neighbors(_WithTensors):
    """Cosine similarities to the stored rows; the k largest vote. Returns log shares, as the head does."""

    bank: Tensor
    votes: Tensor

    def __init__(self, head: NeighborHead) -> None:
        super().__init__()
        self.k, self.temperature = int(head.k), float(head.temperature)
        votes = np.zeros((len(head.labels), head.n_classes))
        votes[np.arange(len(head.labels)), head.labels] = head.weights
        self._keep(bank=head.bank, votes=votes)

    def forward(self, features: Tensor) -> Tensor:
        length = features.double().square().sum(1, keepdim=True).sqrt().clamp(min=1e-12)
        similarities = (features / length).float() @ self.bank.T  # (N, S)
        near, rows = similarities.topk(self.k, dim=1)  # (N, k), the largest first
        each = ((near - near[:, :1]).double() / self.temperature).exp()
        votes = (each[:, :, None] * self.votes[rows]).sum(1)  # (N, k, C) to (N, C)
        return (votes / votes.sum(1, keepdim=True)).clamp(min=_FLOOR).log()


class _Kernel(_WithTensors):
    """RBF kernel values, float32 as the heads' own, between standardised features (N, D) and vectors (S, D)."""

    mean: Tensor
    scale: Tensor
    vectors: Tensor
    squares: Tensor

    def __init__(self, head: SupportVectorHead | LandmarkHead, vectors: Floats) -> None:
        super().__init__()
        self.gamma = float(head.gamma)
        self._keep(mean=head.mean, scale=head.scale, vectors=vectors, squares=np.einsum("ij,ij->i", vectors, vectors))

    def kernel(self, features: Tensor) -> Tensor:
        X = (features - self.mean) / self.scale
        distances = X @ self.vectors.T * -2 + X.square().sum(1, keepdim=True) + self.squares
        return (distances.clamp(min=0) * -self.gamma).exp()


class _Landmarks(_Kernel):
    weight: Tensor
    bias: Tensor

    def __init__(self, head: LandmarkHead) -> None:
        super().__init__(head, head.landmarks)
        self._keep(weight=head.weight, bias=head.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.kernel(features).double() @ self.weight.T + self.bias


class _SupportVectors(_Kernel):
    """One classifier a pair of classes, and their votes; see `heads.kernel_heads.SupportVectorHead`."""

    dual_coef: Tensor
    intercept: Tensor
    of_first: Tensor
    of_second: Tensor
    winners: Tensor
    losers: Tensor
    spread: Tensor
    absent: Tensor

    def __init__(self, head: SupportVectorHead) -> None:
        super().__init__(head, head.vectors)
        n_present = len(head.present)
        self.ends = np.cumsum(head.counts).tolist()
        pairs = list(combinations(range(n_present), 2))
        first, second = (np.array(side) for side in zip(*pairs, strict=True))
        each = np.eye(n_present)
        spread = np.zeros((n_present, head.n_classes))
        spread[np.arange(n_present), head.present] = 1
        absent = np.where(spread.any(0), 0, ABSENT)
        self._keep(dual_coef=head.dual_coef, intercept=head.intercept, winners=each[first], losers=each[second])
        # where a pair's two halves stand in (P, P - 1), flat
        self._keep(of_first=first * (n_present - 1) + second - 1, of_second=second * (n_present - 1) + first)
        self._keep(spread=spread, absent=absent)

    def forward(self, features: Tensor) -> Tensor:
        kernel = self.kernel(features).double()
        starts = [0, *self.ends[:-1]]
        parts = [kernel[:, s:e] @ self.dual_coef[:, s:e].T for s, e in zip(starts, self.ends, strict=True)]
        halves = torch.cat(parts, 1)  # (N, P * (P - 1))
        decisions = halves[:, self.of_first] + halves[:, self.of_second] + self.intercept
        won = (decisions >= 0).double()
        votes = won @ self.winners + (1 - won) @ self.losers
        total = decisions @ (self.winners - self.losers)
        return (votes + total / (3 * (total.abs() + 1))) @ self.spread + self.absent
