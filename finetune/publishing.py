"""A fine-tuned model and its record in; a run's folder out: run.json, predictions.npz, the weights, a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from featcache.cache.canary import Canary
from featcache.common.disk import publish_folder
from featcache.embedding.frozen_encoder import NO_IMAGES
from featcache.embedding.job import Embedding
from featcache.models.backbones import Backbone
from featcache.models.finetuned_weights import MODEL_FILE
from finetune.rate_finder import FoundRates
from finetune.tuned_run import TunedRun
from heads.run_canary import write_canary


def trunk_canary(backbone: Backbone, *, precision: str, device: torch.device) -> Canary:
    """What the trunk makes of the shipped pictures as it is now, in the precision that it is trained in."""
    return Embedding(
        dataset=NO_IMAGES, backbone=backbone, cache_dir=Path(), storage="float32", precision=precision, device=device
    ).canary()


def publish(
    folder: Path,
    *,
    record: Mapping[str, Any],
    tuned: TunedRun,
    model: nn.Module,
    canary: Canary,
    found: FoundRates | None = None,
    numbered: bool = False,
) -> Path:
    """Write a run's folder, whole or not at all; with the curve of its range test, where there was one.

    Its weights are what ``bin/embed --weights`` takes. ``canary`` is what its trunk makes of the shipped pictures.
    ``numbered`` and the folder that is returned are as in `heads.runs.write_run`.

    Raises:
        UserError: it can't be written.
    """

    def write(temporary: Path) -> None:
        (temporary / "run.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
        np.savez(temporary / "predictions.npz", allow_pickle=False, **tuned.predictions)
        state = model.state_dict()  # with the versions of its modules' layouts, which MNASNet does not load without
        state |= {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        with (temporary / MODEL_FILE).open("wb") as file:
            torch.save(state, file)
        write_canary(temporary, [canary])
        if find_spec("matplotlib"):
            from finetune.plots import draw_history, draw_rates

            draw_history(tuned.history, best_epoch=tuned.chosen.best_epoch, path=temporary / "history.png")
            if found is not None:
                draw_rates(found, path=temporary / "rates.png")

    return publish_folder(folder, write, numbered=numbered)
