"""`--clf knn`: one search of the most neighbours serves every k and temperature; rows in, heads and trials out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from featcache.common.machine import choose_device
from heads.fitting import Fitted, Folds, Params, Task, Trial
from heads.grids import continued
from heads.nearest import nearest
from heads.neighbors import NeighborHead, neighbor_votes, normalized
from heads.predictors import Scores
from heads.standardization import Floats, Labels

if TYPE_CHECKING:
    import torch

    from heads.features import Features

_FEW_PRODUCTS = 10**10  # less is done before torch is imported


@dataclass(frozen=True, kw_only=True)
class Neighbors:
    """k nearest neighbours by cosine similarity; all views of the training rows are stored.

    With row weights each vote is multiplied by its row's. A k above the number of stored rows means all of them.
    """

    k: tuple[int, ...]
    temperature: tuple[float, ...]
    natural_ends: dict[str, tuple[float, ...]] = field(
        default_factory=lambda: {"k": (1,), "temperature": (1.0,)}
    )  # at temperature 1 votes are all but equal
    stops_early = False

    def chains(self, n_train: int, n_features: int, n_total: int) -> list[list[Params]]:
        ks = [k for k in self.k if k <= n_train]
        return [[{"k": k, "temperature": t} for k in ks for t in self.temperature]]

    def search(self, chain: list[Params], folds: Folds) -> Iterator[Trial]:
        tasks = [folds.task(train) for train in folds.train]
        banks = [_bank(task) for task in tasks]
        widest = max(params["k"] for params in chain)
        found = [
            _neighbors(folds.X.take(val), bank, task, widest)
            for bank, task, val in zip(banks, tasks, folds.val, strict=True)
        ]
        for params in chain:
            heads = [_head(bank, task, params) for bank, task in zip(banks, tasks, strict=True)]
            yield Trial(
                params=params,
                fitted=tuple(Fitted(head=head) for head in heads),
                scores=tuple(_votes(views, head) for views, head in zip(found, heads, strict=True)),
            )

    def fit(self, params: Params, task: Task) -> Fitted:
        return Fitted(head=_head(_bank(task), task, params))

    def note(self, params: Params, task: Task) -> str:
        return ""

    def beyond(self, best: Params, name: str, up: bool) -> list[Params]:
        if name == "k" and up:
            return [best | {"k": best["k"] * 2**i} for i in (4, 3, 2, 1)]
        if name != "temperature" or best[name] in self.natural_ends["temperature"]:
            return []
        return continued(self.temperature, best, name, up=up, high_is_strong=True)


def _bank(task: Task) -> Floats:
    """The task's rows at length 1, float32 (n_samples, D)."""
    bank = np.empty(task.X.shape, np.float32)
    for rows, block in task.X.blocks():
        bank[rows] = normalized(block)
    return bank


def _head(bank: Floats, task: Task, params: Params) -> NeighborHead:
    return NeighborHead(
        bank=bank,
        labels=task.y,
        weights=np.ones(len(bank)) if task.weights is None else task.weights,
        k=min(params["k"], len(bank)),
        temperature=params["temperature"],
        n_classes=task.n_classes,
    )


def _neighbors(X_val: Features, bank: Floats, task: Task, k: int) -> list[tuple[Floats, Labels]]:
    """For each view of the rows to score, similarities and row numbers of their k nearest stored rows."""
    place = _place(task.device, len(X_val) * X_val.n_views * bank.size)
    return [
        nearest(normalized(X_val.view(number).load()), bank, min(k, len(bank)), place=place)
        for number in range(X_val.n_views)
    ]


def _place(device: str, n_products: int) -> torch.device | None:
    """The GPU where there is one and it is worth while, or None: numpy, which does not have to be waited for."""
    if device == "cpu" or n_products < _FEW_PRODUCTS:
        return None
    place = choose_device(device)
    return place if place.type == "cuda" else None


def _votes(views: list[tuple[Floats, Labels]], head: NeighborHead) -> Scores:
    """Scores of rows from the neighbours of each of their views: the log of the mean of the views' probabilities."""
    each = [
        neighbor_votes(
            similarities[:, : head.k],
            head.labels[rows[:, : head.k]],
            n_classes=head.n_classes,
            temperature=head.temperature,
            weights=head.weights[rows[:, : head.k]],
        )
        for similarities, rows in views
    ]
    if len(each) == 1:
        return each[0]
    # a floor under the votes leaves their sum above 1 by less than rounding shows
    return np.log(np.mean(np.exp(each), axis=0))
