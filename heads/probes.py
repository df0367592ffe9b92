"""`--clf linear` and `--clf mlp`: classifiers that torch trains by epochs, a whole grid at once; rows in, heads out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from heads.fitting import Fitted, Folds, Params, Task, Trial, averaged_scores
from heads.grids import continued
from heads.linear_probe import Member, Trained, train_members
from heads.predictors import Head, LinearHead, MLPHead, class_rows
from heads.standardization import standardized


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A linear or one-hidden-layer classifier trained by torch, all members of the grid side by side.

    Of several views of an image each epoch draws one. The epochs of a member are those of its highest accuracy on the
    plain views of the rows to score; over several folds, the median of each fold's.
    """

    members: tuple[Member, ...]
    epochs: int
    min_steps: int = 1000  # small sets get more epochs, up to 100
    natural_ends: dict[str, tuple[float, ...]] = field(default_factory=lambda: {"weight_decay": (0.0,)})
    stops_early = False

    def chains(self, n_train: int, n_features: int, n_total: int) -> list[list[Params]]:
        batch_size = 256
        while batch_size > 16 and n_train < 20 * batch_size:
            batch_size //= 2
        steps = -(-n_train // batch_size)
        epochs = max(self.epochs, min(100, -(-self.min_steps // steps)))
        shared = {"batch_size": batch_size, "schedule_epochs": epochs}
        return [[{k: v for k, v in vars(m).items() if v is not None} | shared for m in self.members]]

    def search(self, chain: list[Params], folds: Folds) -> Iterator[Trial]:
        each: list[list[tuple[Fitted, int]]] = []  # by fold and candidate, with the best epoch
        held_out = [folds.X.take(val) for val in folds.val]
        for number in range(len(folds)):
            fold = folds.fold(number)
            task = fold.task
            known = np.flatnonzero(np.isin(fold.y_val, task.present))  # others say nothing about the epochs
            trained = train_members(
                task.Z,
                task.codes,
                [_member(params) for params in chain],
                n_classes=len(task.present),
                schedule_epochs=chain[0]["schedule_epochs"],
                batch_size=chain[0]["batch_size"],
                X_val=standardized(fold.X_val.take(known).load(), *task.statistics) if len(known) else None,
                y_val=np.searchsorted(task.present, fold.y_val[known]).astype(np.int64) if len(known) else None,
                weights=task.weights,
                n_views=task.n_views,
                seed=task.seed,
                device=task.device,
            )
            each.append([(_fitted(member, task), member.epoch) for member in trained])
        for params, *found in zip(chain, *each, strict=True):
            epochs = max(1, round(float(np.median([epoch for _, epoch in found]))))
            fitted = tuple(f for f, _ in found)
            scores = tuple(averaged_scores(f.head, X_val) for f, X_val in zip(fitted, held_out, strict=True))
            yield Trial(params={**params, "epochs": epochs}, fitted=fitted, scores=scores)

    def fit(self, params: Params, task: Task) -> Fitted:
        (trained,) = train_members(
            task.Z,
            task.codes,
            [_member(params)],
            n_classes=len(task.present),
            schedule_epochs=params["schedule_epochs"],
            batch_size=params["batch_size"],
            epochs=params["epochs"],
            weights=task.weights,
            n_views=task.n_views,
            seed=task.seed,
            device=task.device,
            phase="refit",
        )
        return _fitted(trained, task)

    def note(self, params: Params, task: Task) -> str:
        return ""

    def beyond(self, best: Params, name: str, up: bool) -> list[Params]:
        alike = [member for member in self.members if member.optimizer == best["optimizer"]]
        start = {key: value for key, value in best.items() if key != "epochs"}
        if name == "lr":
            more = continued([member.lr for member in alike], start, name, up=up)
        elif name == "weight_decay":
            more = continued([member.weight_decay for member in alike], start, name, up=up, high_is_strong=True)
        else:
            return []
        # a step takes lr * weight_decay of the weights away: 1 leaves nothing of them, and more turns them round
        return [params for params in more if params.get("weight_decay", 0.0) * params.get("lr", 0.0) < 1]


def _member(params: Params) -> Member:
    return Member(**{k: params[k] for k in ("optimizer", "lr", "weight_decay", "hidden") if k in params})


def _fitted(trained: Trained, task: Task) -> Fitted:
    mean, scale = task.statistics
    w = trained.weights
    weight, bias = class_rows(w["weight"], w["bias"], task.present, task.n_classes)
    head: Head
    if "hidden_weight" in w:
        hidden, offset = w["hidden_weight"], w["hidden_bias"]
        head = MLPHead(mean=mean, scale=scale, hidden_weight=hidden, hidden_bias=offset, weight=weight, bias=bias)
    else:
        head = LinearHead(mean=mean, scale=scale, weight=weight, bias=bias, probabilistic=True)
    return Fitted(
        head=head,
        converged=trained.finite,
        message="" if trained.finite else "the training diverged: its loss is not finite",
        history=trained.history,
        epoch_seconds=trained.epoch_seconds,
    )
