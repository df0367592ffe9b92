"""Train many linear or one-hidden-layer classifiers side by side, in one pass over shuffled minibatches, with torch.

Standardised features and labels in; for each member its history and its weights at its best epoch out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featcache.common.machine import choose_device, has_room
from heads.predictors import Doubles
from heads.standardization import Floats, Labels

if TYPE_CHECKING:
    import torch

_EVAL_ROWS = 8192


@dataclass(frozen=True, kw_only=True)
class Member:
    """One classifier's settings: optimizer adamw or sgd (Nesterov, momentum 0.9), hidden units or None for linear."""

    optimizer: str
    lr: float
    weight_decay: float
    hidden: int | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Trained:
    """A member after training. `weights` holds weight (C, D or H), bias (C,) and for a hidden layer hidden_weight (H,
    D)
    and hidden_bias (H,), float32, as they were after `epoch` epochs. `finite` is False where it diverged.
    """

    member: Member
    weights: dict[str, NDArray[np.float32]]
    epoch: int
    history: list[dict[str, Any]]
    finite: bool
    epoch_seconds: float


def learning_rate(step: int, *, peak: float, total_steps: int) -> float:
    """The rate of a step, counted from 0: half a cosine from `peak` to 0 over `total_steps`."""
    return 0.5 * peak * (1.0 + math.cos(math.pi * step / total_steps))


def train_members(
    X: Floats,
    y: Labels,
    members: Sequence[Member],
    *,
    n_classes: int,
    schedule_epochs: int,
    batch_size: int,
    X_val: Floats | None = None,
    y_val: Labels | None = None,
    epochs: int | None = None,
    weights: Doubles | None = None,
    n_views: int = 1,
    seed: int = 0,
    device: str = "auto",
    phase: str = "search",
) -> list[Trained]:
    """Train all members on the same minibatches for `epochs` of the `schedule_epochs` that the cosine schedule spans.

    X is float32 (N, D) and standardised, y int64 (N,). A row's cross-entropy is multiplied by its `weights` (N,), whose
    mean is 1. `n_views` rows in a row are views of one image, of which each epoch draws one. With validation rows, a
    member's best epoch is the one of highest validation accuracy, then lowest validation loss; without, it is the last.
    `device` is auto, cuda, mps or cpu.
    """
    import torch
    from torch.nn.functional import cross_entropy

    place = choose_device(device)
    n_samples, n_members = len(X) // n_views, len(members)
    epochs = epochs or schedule_epochs
    steps_per_epoch = -(-n_samples // batch_size)
    models = [_weights(m, X.shape[1], n_classes, seed, place) for m in members]
    optimizers = _optimizers(members, models)

    rows, targets = _on(place, X), torch.from_numpy(y).to(place)
    counts = None if weights is None else torch.from_numpy(weights.astype(np.float32)).to(place)
    val_rows = None if X_val is None else _on(place, X_val)
    val_targets = None if y_val is None else torch.from_numpy(y_val).to(place)
    shuffle = torch.Generator().manual_seed(seed)
    histories: list[list[dict[str, Any]]] = [[] for _ in members]
    best: list[tuple[float, float]] = [(-1.0, 0.0)] * n_members
    kept = [(0, model) for model in models]
    seconds = []

    for epoch in range(1, epochs + 1):
        began = time.perf_counter()
        order = torch.randperm(n_samples, generator=shuffle)
        if n_views > 1:
            order = order * n_views + torch.randint(n_views, (n_samples,), generator=shuffle)
        loss_sum = torch.zeros(n_members, device=place)
        correct = torch.zeros(n_members, device=place)
        for i in range(steps_per_epoch):
            step = (epoch - 1) * steps_per_epoch + i
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, peak=group["peak"], total_steps=schedule_epochs * steps_per_epoch)
                optimizer.zero_grad(set_to_none=True)
            batch = order[i * batch_size : (i + 1) * batch_size].to(rows.device)
            x = rows[batch].to(place)  # (B, D)
            batch = batch.to(place)
            t = targets[batch]  # (B,)
            logits = _logits(x, members, models)  # (B, members, C)
            loss = cross_entropy(logits.flatten(0, 1), t.repeat_interleave(n_members), reduction="none")
            loss = loss.view(-1, n_members)
            if counts is not None:
                loss = loss * counts[batch][:, None]
            # members share no weight, so the sum trains each on its own loss
            loss.mean(dim=0).sum().backward()  # type: ignore[no-untyped-call]
            for optimizer in optimizers:
                optimizer.step()
            loss_sum += loss.detach().sum(dim=0)
            correct += (logits.detach().argmax(dim=2) == t[:, None]).sum(dim=0)
        train_loss, train_accuracy = (loss_sum / n_samples).tolist(), (correct / n_samples).tolist()
        val_loss: list[float | None] = [None] * n_members
        val_accuracy: list[float | None] = [None] * n_members
        if val_rows is not None and val_targets is not None:
            val_loss, val_accuracy = _evaluated(val_rows, val_targets, members, models)
        seconds.append(time.perf_counter() - began)
        for m, member in enumerate(members):
            if not math.isfinite(train_loss[m]) or not math.isfinite(val_loss[m] or 0.0):
                continue  # diverged: its history ends here
            histories[m].append(
                {
                    "epoch": epoch,
                    "phase": phase,
                    "train_loss": train_loss[m],
                    "train_accuracy": train_accuracy[m],
                    "val_loss": val_loss[m],
                    "val_accuracy": val_accuracy[m],
                    "lr": learning_rate(
                        epoch * steps_per_epoch - 1, peak=member.lr, total_steps=schedule_epochs * steps_per_epoch
                    ),
                    "seconds": seconds[-1],
                }
            )
            rank = (val_accuracy[m] or 0.0, -(val_loss[m] or 0.0))
            if val_rows is None or rank > best[m]:
                best[m] = rank
                kept[m] = (epoch, {name: w.detach().clone() for name, w in models[m].items()})

    return [
        Trained(
            member=member,
            weights={name: w.detach().cpu().numpy() for name, w in weights.items()},
            epoch=epoch,
            history=history,
            finite=len(history) == epochs and all(bool(w.isfinite().all()) for w in weights.values()),
            epoch_seconds=float(np.mean(seconds)),
        )
        for member, (epoch, weights), history in zip(members, kept, histories, strict=True)
    ]


def _on(place: torch.device, X: Floats) -> torch.Tensor:
    """X on the device where it fits in half of the free memory there, else in main memory, to be moved by the batch."""
    import torch

    rows = torch.from_numpy(np.ascontiguousarray(X, np.float32))
    return rows.to(place) if has_room(place, X.nbytes) else rows


def _weights(member: Member, d: int, n_classes: int, seed: int, place: torch.device) -> dict[str, torch.Tensor]:
    """First weights: zeros for a linear layer (its loss is convex), He's normal for a hidden one."""
    import torch

    weights = {}
    if member.hidden:
        generator = torch.Generator().manual_seed(seed)  # anew for each member: the refit starts from the same numbers
        weights["hidden_weight"] = torch.randn(member.hidden, d, generator=generator) * math.sqrt(2.0 / d)
        weights["hidden_bias"] = torch.zeros(member.hidden)
        d = member.hidden
    weights["weight"], weights["bias"] = torch.zeros(n_classes, d), torch.zeros(n_classes)
    return {name: w.to(place).requires_grad_() for name, w in weights.items()}


def _optimizers(members: Sequence[Member], models: list[dict[str, torch.Tensor]]) -> list[torch.optim.Optimizer]:
    """One optimizer a kind, one parameter group a member for its weights and one for its biases, which do not decay."""
    import torch

    groups: dict[str, list[dict[str, Any]]] = {"adamw": [], "sgd": []}
    for member, model in zip(members, models, strict=True):
        shared = {"lr": member.lr, "peak": member.lr}
        decaying = [w for name, w in model.items() if name.endswith("weight")]
        free = [w for name, w in model.items() if name.endswith("bias")]
        groups[member.optimizer] += [
            {"params": decaying, "weight_decay": member.weight_decay, **shared},
            {"params": free, "weight_decay": 0.0, **shared},
        ]
    # one kernel a group instead of a dozen; on a CPU most of a step is otherwise spent starting them
    fused = models[0]["weight"].device.type in {"cpu", "cuda"}
    made: list[torch.optim.Optimizer] = []
    if groups["adamw"]:
        made.append(torch.optim.AdamW(groups["adamw"], lr=0.0, fused=fused))
    if groups["sgd"]:
        made.append(torch.optim.SGD(groups["sgd"], lr=0.0, momentum=0.9, nesterov=True, fused=fused))
    return made


def _logits(x: torch.Tensor, members: Sequence[Member], models: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Logits (B, members, C) of x (B, D): the members' first layers are concatenated into one matrix product."""
    import torch
    from torch.nn.functional import linear

    first = "hidden_" if members[0].hidden else ""
    out = linear(x, torch.cat([w[first + "weight"] for w in models]), torch.cat([w[first + "bias"] for w in models]))
    if not first:
        return out.view(len(x), len(models), -1)
    parts = torch.split(out.relu(), [m.hidden or 0 for m in members], dim=1)
    return torch.stack([linear(h, w["weight"], w["bias"]) for h, w in zip(parts, models, strict=True)], dim=1)


def _evaluated(
    rows: torch.Tensor, targets: torch.Tensor, members: Sequence[Member], models: list[dict[str, torch.Tensor]]
) -> tuple[list[float | None], list[float | None]]:
    import torch
    from torch.nn.functional import cross_entropy

    loss = torch.zeros(len(members), device=targets.device)
    correct = torch.zeros(len(members), device=targets.device)
    with torch.no_grad():
        for i in range(0, len(targets), _EVAL_ROWS):
            t = targets[i : i + _EVAL_ROWS]
            logits = _logits(rows[i : i + _EVAL_ROWS].to(targets.device), members, models)
            each = cross_entropy(logits.flatten(0, 1), t.repeat_interleave(len(members)), reduction="none")
            loss += each.view(-1, len(members)).sum(dim=0)
            correct += (logits.argmax(dim=2) == t[:, None]).sum(dim=0)
    return (loss / len(targets)).tolist(), (correct / len(targets)).tolist()
