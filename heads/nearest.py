"""Queries and stored rows, both of length 1, in; the k most similar stored rows of each query out, most similar first.

Exact, in blocks, by numpy or by torch. Of equal similarities the row stored first is the nearer, in both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from heads.standardization import Floats, Labels

if TYPE_CHECKING:
    import torch

_QUERIES = 2048  # rows compared at once
_BANK = 32768  # with so many stored rows


def nearest(queries: Floats, bank: Floats, k: int, *, place: torch.device | None = None) -> tuple[Floats, Labels]:
    """Similarities float32 (N, k), descending, and row numbers int64 (N, k) of the rows of the bank nearest to queries.

    Queries are (N, D), the bank is (S, D) with S >= k. Without a `place` numpy does it, with one torch does it there.
    """
    found = [
        _nearest(queries[i : i + _QUERIES], bank, k)
        if place is None
        else _on(place, queries[i : i + _QUERIES], bank, k)
        for i in range(0, max(len(queries), 1), _QUERIES)
    ]
    if len(found) == 1:
        return found[0]
    return np.concatenate([s for s, _ in found]), np.concatenate([r for _, r in found])


def _nearest(query: Floats, bank: Floats, k: int) -> tuple[Floats, Labels]:
    best = np.empty((len(query), 0), np.float32)
    rows = np.empty((len(query), 0), np.int64)
    for first in range(0, len(bank), _BANK):
        near = query @ bank[first : first + _BANK].T
        if near.shape[1] > k:
            column = np.argpartition(near, -k, axis=1)[:, -k:]
            chosen = np.take_along_axis(near, column, axis=1)
            _break_ties(near, chosen, column)
            near = np.take_along_axis(near, column, axis=1)
        else:
            column = np.broadcast_to(np.arange(near.shape[1]), near.shape)
        best = np.concatenate([best, near], axis=1)
        rows = np.concatenate([rows, column + first], axis=1)
        order = np.lexsort((rows, -best), axis=1)[:, :k]
        best, rows = np.take_along_axis(best, order, axis=1), np.take_along_axis(rows, order, axis=1)
    return best, rows


def _break_ties(near: Floats, chosen: Floats, column: Labels) -> None:
    """Where more columns of `near` equal the least chosen value than were chosen, make it the first of them."""
    least = chosen.min(axis=1, keepdims=True)
    k = chosen.shape[1]
    for i in np.flatnonzero(np.count_nonzero(near >= least, axis=1) > k):
        above = np.flatnonzero(near[i] > least[i])
        column[i] = np.concatenate([above, np.flatnonzero(near[i] == least[i])[: k - len(above)]])


def _on(place: torch.device, queries: Floats, bank: Floats, k: int) -> tuple[Floats, Labels]:
    import torch

    query = torch.from_numpy(np.ascontiguousarray(queries)).to(place)
    best = torch.empty((len(query), 0), device=place)
    rows = torch.empty((len(query), 0), dtype=torch.int64, device=place)
    for first in range(0, len(bank), _BANK):
        part = torch.from_numpy(bank[first : first + _BANK]).to(place)
        near = query @ part.T
        if near.shape[1] > k:
            chosen, column = near.topk(k, dim=1)
            least = chosen[:, -1:]
            # topk takes any of equal values: where some were left out, the first of them are put in
            for i in ((near >= least).sum(dim=1) > k).nonzero().flatten().tolist():
                above = (near[i] > least[i]).nonzero().flatten()
                equal = (near[i] == least[i]).nonzero().flatten()
                column[i] = torch.cat([above, equal[: k - len(above)]])
            near = near.gather(1, column)
        else:
            column = torch.arange(near.shape[1], device=place).expand_as(near)
        best = torch.cat([best, near], dim=1)
        rows = torch.cat([rows, column + first], dim=1)
        rows, order = rows.sort(dim=1)  # so that a stable sort leaves the earlier row first
        best, order = best.gather(1, order).sort(dim=1, descending=True, stable=True)
        best, rows = best[:, :k], rows.gather(1, order)[:, :k]
    return best.cpu().numpy(), rows.cpu().numpy()
