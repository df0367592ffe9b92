"""Trainings of ResNet-18 on digits, by one process or by the ranks that torchrun starts: ``ranked.py CACHE OUT``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tuning import plan_for, weights_of

from featcache.cache import Cache
from featcache.ranks import ALONE, Ranks
from finetune.cached_rows import backbone_of, tuning_rows
from finetune.holding import held
from finetune.new_head import replace_head
from finetune.rehearsal import Rehearsed
from finetune.settings import Settings
from finetune.training import Trained, train
from heads.rows import load_rows

CPU = torch.device("cpu")
#: Plan and settings of 20 steps each: 48 rows in 5 batches of 10 or 9, which two ranks can't share evenly.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sgd": ({"unfreeze": "all", "epochs": 4}, {"optimizer": "sgd", "batch_size": 10}),
    "adamw": ({"unfreeze": "all", "epochs": 4, "lr": 1e-3}, {"optimizer": "adamw", "batch_size": 10}),
    "all of it": (
        {"progressive": True, "unfreeze": "last:2", "phase_epochs": [1, 1, 5], "epochs": None},
        {"optimizer": "sgd", "batch_size": 10, "accumulate": 2, "augment": "strong", "mix": "cutmix", "clip": 1.0,
         "ema": 0.9, "label_smoothing": 0.1, "l2_sp": 0.1, "rehearse": 0.5},
    ),
}  # fmt: skip


def trained(cache: Cache, case: str, ranks: Ranks = ALONE) -> tuple[Trained, dict[str, Tensor]]:
    """How it went, and the weights that it came to."""
    flags, given = CASES[case]
    rows = tuning_rows(cache, load_rows(cache, val_fraction=0.2, rows_only=True), device=CPU)
    settings = Settings(**given)
    sources = {"train": rows.train, "val": rows.val}
    if settings.augment != "none":
        from dataclasses import replace

        sources["train"] = replace(rows.train, augment=settings.augment)
    staged = backbone_of(cache).staged
    own_head = staged.head
    replace_head(staged, 10, seed=0)
    plan = plan_for(staged, batch_norm="eval", **flags)
    with torch.no_grad():
        (images,) = rows.val.batches([range(len(rows.val.labels))], augment=False)  # type: ignore[list-item]
        start = Rehearsed(cache=cache, images=rows.val, features=staged.trunk()(images))
    terms = held(
        staged, plan, rows.train, head=own_head, settings=settings, device=CPU, rehearsed=start, ranks=ranks
    ).terms
    found = train(
        staged,
        plan,
        sources["train"],
        settings=settings,
        validation=sources["val"] if "ema" in given else None,
        device=CPU,
        terms=terms,
        ranks=ranks,
    )
    return found, weights_of(staged)


if __name__ == "__main__":
    torch.set_num_threads(1)
    ranks = Ranks.of_environment()
    with ranks.joined(tensors=True):
        for case in CASES:
            found, weights = trained(Cache.open(Path(sys.argv[1])), case, ranks)
            torch.save([found.history, weights], f"{sys.argv[2]}/{case}-{ranks.rank}.pt")
