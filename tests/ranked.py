"""Trainings on digits, by one process or by several ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tuning import plan_for, weights_of

from featcache.cache.cache_file import Cache
from featcache.common.ranks import ALONE, Ranks
from finetune.cached_rows import backbone_of, tuning_rows
from finetune.holding import held
from finetune.new_head import replace_head
from finetune.rehearsal import Rehearsed
from finetune.settings import Settings
from finetune.training import Trained, train
from heads.rows import load_rows

CPU = torch.device("cpu")
#: Plan and settings: 20 rows in 4 batches of 5, which two ranks can't share evenly; 20 steps, or 6.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sgd": ({"freeze": "layer4", "epochs": 5, "lr": 1e-3}, {"optimizer": "sgd"}),
    "adamw": ({"freeze": "layer4", "epochs": 5, "lr": 1e-4}, {"optimizer": "adamw"}),
    "all of it": (
        {"progressive": True, "unfreeze": "last:2", "phase_epochs": [1, 1, 1], "epochs": None, "lr": 1e-2},
        {"optimizer": "sgd", "accumulate": 2, "augment": "strong", "mix": "cutmix", "clip": 1.0, "ema": 0.5,
         "label_smoothing": 0.1, "l2_sp": 0.1, "rehearse": 0.5},
    ),
}  # fmt: skip


def trained(cache: Cache, case: str, ranks: Ranks = ALONE) -> tuple[Trained, dict[str, Tensor], dict[str, Tensor]]:
    """How it went, and the weights that it began with and came to."""
    flags, given = CASES[case]
    settings = Settings(batch_size=5, **given)
    chosen = load_rows(cache, val_fraction=0.2, rows_only=True)
    rows = tuning_rows(cache, chosen, device=CPU, augment=settings.augment)
    staged = backbone_of(cache).staged
    own_head = staged.head
    replace_head(staged, 10, seed=0)
    start = weights_of(staged)
    plan = plan_for(staged, batch_norm="eval", **flags)
    with torch.no_grad():
        (images,) = rows.val.batches([np.arange(len(rows.val.labels))], augment=False)
        kept = Rehearsed(cache=cache, images=rows.val, features=staged.trunk()(images))
    terms = held(
        staged, plan, rows.train, head=own_head, settings=settings, device=CPU, rehearsed=kept, ranks=ranks
    ).terms
    found = train(
        staged,
        plan,
        rows.train,
        settings=settings,
        validation=None,
        test=rows.val,
        device=CPU,
        terms=terms,
        ranks=ranks,
    )
    return found, start, weights_of(staged)


def train_and_save(cache: Path) -> None:
    """As one of several ranks: train every case, and save its history and weights here."""
    ranks = Ranks.of_environment()
    with ranks.joined(tensors=True):
        for case in CASES:
            found, _, weights = trained(Cache.open(cache), case, ranks)
            torch.save([found.history, weights], f"{case}-{ranks.rank}.pt")
