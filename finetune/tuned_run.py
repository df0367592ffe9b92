"""A model, a plan and rows in; the model fine-tuned, its predictions and the record of the run out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featcache.cache.cache_file import Cache
from featcache.common import hashing
from featcache.common.machine import device_name, versions
from featcache.common.ranks import ALONE, Ranks
from featcache.models.stages import StagedModel
from featcache.models.weights import sha256
from finetune.cached_rows import TuningRows
from finetune.changes import StageChange, stage_changes
from finetune.forward import Passes
from finetune.interpolation import Interpolated, between, interpolate, overwrite
from finetune.penalties import Term
from finetune.plans import Plan
from finetune.settings import Settings
from finetune.sources import Source
from finetune.thawing import count_parameters, moving_state
from finetune.training import Trained, train
from finetune.trunk_cache import TrunkCached
from heads.evidence.metrics import Metrics, evaluate
from heads.rows import SplitRows
from heads.runs import SCHEMA, created_now, peak_rss_mb

#: What ``run.json`` says of test accuracies in its history.
TEST_CURVE = "recorded after each epoch on request; used for nothing"
#: Marks epochs of the second training, on train and validation.
_REFIT = "refit:"


@dataclass(frozen=True, eq=False, kw_only=True)
class TunedRun:
    """A finished fine-tuning; the model was trained in place.

    Attributes:
        plan, settings: how.
        chosen: the training on train alone, whose best epoch validation chose.
        refitted: the training on train and validation for as many epochs, or None.
        interpolated: how the weights were averaged with the start's, or None.
        metrics: ``train`` (of the final model on what it was trained on), ``val`` (of the chosen one, which never saw
            it), ``test``.
        predictions: ids, labels and scores of val and test, as in ``predictions.npz``.
        changes: from the start to the final model, by stage; the head's is the last.
    """

    plan: Plan
    settings: Settings
    chosen: Trained
    refitted: Trained | None
    interpolated: Interpolated | None
    metrics: dict[str, Metrics]
    predictions: dict[str, NDArray[Any]]
    changes: tuple[StageChange, ...]

    @property
    def history(self) -> list[dict[str, Any]]:
        """The epochs of both trainings."""
        again = [] if self.refitted is None else self.refitted.history
        return [*self.chosen.history, *({**entry, "phase": _REFIT + entry["phase"]} for entry in again)]

    @property
    def seconds(self) -> float:
        """Of all epochs."""
        return float(sum(entry["seconds"] for entry in self.history))


def fine_tune(
    staged: StagedModel,
    plan: Plan,
    rows: TuningRows,
    *,
    settings: Settings,
    device: torch.device,
    terms: Sequence[Term] = (),
    ranks: Ranks = ALONE,
    refit: bool = True,
    record_test_curve: bool = False,
    work: Path | None = None,
    fingerprint: str = "",
    resume: bool = False,
    on_epoch: Callable[[dict[str, Any]], None] = lambda entry: None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> TunedRun:
    """Train, choose the epoch on validation, train again on train and validation, score test once.

    Args:
        staged: the model with a head for the classes; trained in place.
        plan, settings: what trains, and how.
        rows: disjoint train, val and test.
        device: where to compute.
        terms: to be added to the loss of each step, in both trainings.
        ranks: that train together; each gets the same run.
        refit: whether the final model is trained from the start on train and validation, for as many epochs as were
            best; otherwise it is the one that was chosen.
        record_test_curve: whether the test rows are scored after each epoch too, for the history alone.
        work: a folder for checkpoints.
        fingerprint, resume, on_epoch, on_step: as in `finetune.training.train`; epochs of the second training have a
            phase that begins with ``refit:``, and steps are counted through both.

    Raises:
        UserError: as training does, or where an image changed.
    """
    start = {name: tensor.detach().to("cpu", copy=True) for name, tensor in staged.model.state_dict().items()}
    first, n_dev = plan.epochs * len(rows.train.labels), len(rows.train.labels) + len(rows.val.labels)
    in_all = first + (plan.epochs * n_dev if refit else 0)
    both: dict[str, Any] = {
        "settings": settings,
        "device": device,
        "test": rows.test if record_test_curve else None,
        "terms": terms,
        "ranks": ranks,
        "fingerprint": fingerprint,
        "resume": resume,
    }
    chosen = train(
        staged,
        plan,
        rows.train,
        validation=rows.val,
        checkpoint=work and work / "chosen.pt",
        on_epoch=on_epoch,
        on_step=lambda done, _: on_step(done, in_all),
        **both,
    )
    assert chosen.val_scores is not None
    never_moved = min(plan.cut(phase) for phase in plan.phases)

    def scored(source: Source) -> NDArray[np.float32]:
        return Passes(staged, cut=never_moved, settings=settings, device=device).scores(source, ranks)

    interpolated, val_scores = None, chosen.val_scores
    moving = moving_state(staged, plan.trained, plan.batch_norm)  # where the device has it
    began = {name: start[name] for name in moving}
    if settings.wise_ft:
        interpolated = interpolate(
            began,
            moving,
            settings.wise_ft,
            scores=lambda: scored(rows.val),
            labels=rows.val.labels,
            as_tuned=() if plan.init_head is not None else _head_of(staged, moving),
        )
        val_scores = interpolated.val_scores
    refitted, fitted_on = None, rows.train
    if refit:
        overwrite(staged.model.state_dict(), start)
        fitted_on = rows.train.joined(rows.val)
        refitted = train(
            staged,
            plan,
            fitted_on,
            validation=None,
            stop_after=chosen.best_epoch,
            checkpoint=work and work / "refitted.pt",
            on_epoch=lambda entry: on_epoch({**entry, "phase": _REFIT + entry["phase"]}),
            on_step=lambda done, _: on_step(first + done, first + chosen.best_epoch * n_dev),
            **both,
        )
        if interpolated is not None:
            overwrite(moving, between(began, moving, interpolated.share, as_tuned=interpolated.as_tuned))
    n_classes = len(rows.rows.class_names)
    test_scores = scored(rows.test)
    metrics = {
        "train": evaluate(scored(fitted_on), fitted_on.labels, n_classes, True, intervals=False),
        "val": evaluate(val_scores, rows.val.labels, n_classes, True),
        "test": evaluate(test_scores, rows.test.labels, n_classes, True),
    }
    return TunedRun(
        plan=plan,
        settings=settings,
        chosen=chosen,
        refitted=refitted,
        interpolated=interpolated,
        metrics=metrics,
        predictions={
            **_predictions("val", rows.rows.val, val_scores),
            **_predictions("test", rows.rows.test, test_scores),
        },
        changes=stage_changes(staged, start, (refitted or chosen).history),
    )


def run_record(
    cache: Cache,
    rows: TuningRows,
    tuned: TunedRun,
    staged: StagedModel,
    *,
    weights: dict[str, Any],
    device: torch.device,
    command: str,
    notes: tuple[str, ...] = (),
    trunk: TrunkCached | None = None,
    held: Mapping[str, Any] | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """The keys of ``run.json`` for a fine-tuned model: those of a head's.

    Args:
        cache: whose rows were trained on.
        rows, tuned, staged: what was trained on, how it went, and the model.
        weights: JSON of the weights that it began with, as `featcache.models.backbones.Backbone` tells them.
        device, command: where, and what asked for it.
        notes: sentences for the user on what was decided.
        trunk: the cache of maps that epochs were trained from, if any.
        held: what held the model to its start, as `finetune.holding.Held` tells it.
        ranks: that trained together; memory is the first's.
    """
    trainable, total = count_parameters(staged, tuned.plan.trained)
    chosen, refitted = tuned.chosen, tuned.refitted
    encoder = {**cache.encoder, "weights": {key: value for key, value in weights.items() if key != "name"}}
    last = refitted or chosen
    gpu = {"peak_gpu_mb": round(torch.cuda.max_memory_allocated(device) / 1e6, 1)} if device.type == "cuda" else {}
    return {
        "schema": SCHEMA,
        "kind": "finetune",
        "method": tuned.plan.method,
        "command": command,
        "created": created_now(),
        "seed": tuned.settings.seed,
        "dataset": {
            "name": cache.dataset,
            "fingerprint": rows.rows.fingerprint,
            "class_names": list(rows.rows.class_names),
            "n_train": len(rows.rows.train),
            "n_val": len(rows.rows.val),
            "n_test": len(rows.rows.test),
            "chosen": rows.rows.chosen,
        },
        "encoder": encoder,
        "encoder_fingerprint": hashing.fingerprint(encoder),
        "cache": {"file": cache.path.name, "fingerprint": cache.fingerprint, "weights": weights["name"]},
        "source": "cache" if trunk is not None and trunk.option.epochs == tuned.plan.epochs else "images",
        "trunk_cache": None if trunk is None else trunk.to_json(),
        "augment": tuned.settings.augment if trunk is None else trunk.augment(tuned.settings, tuned.plan),
        "params": {"epochs": chosen.best_epoch, **tuned.settings.to_json()},
        "plan": tuned.plan.to_json(),
        "selection": {
            "candidates": [
                {"params": {"epochs": entry["epoch"]}, **{key: entry[key] for key in ("val_accuracy", "val_loss")}}
                for entry in chosen.history
            ],
            "how": f"epoch {chosen.best_epoch} of {len(chosen.history)}: the highest accuracy on "
            f"{len(rows.rows.val):,} validation rows, of equals the lowest loss",
            "refit": refitted is not None,
            "at_grid_edge": ["epochs"] if chosen.best_epoch == tuned.plan.epochs else [],
        },
        "held": dict(held or {}),
        "wise_ft": tuned.interpolated and tuned.interpolated.to_json(),
        "converged": None,
        "notes": [*rows.rows.notes, *notes],
        "trainable_params": trainable,
        "total_params": total,
        "frozen_sha256": last.frozen_sha256,
        "model_sha256": sha256(staged.model.state_dict()),
        "metrics": {split: metrics.to_json() for split, metrics in tuned.metrics.items()},
        "cost": {
            "embed_s": 0.0 if trunk is None else trunk.seconds,
            "fit_s": round(tuned.seconds, 3),
            "epoch_s": round(median(entry["seconds"] for entry in chosen.history), 3),
            "peak_rss_mb": peak_rss_mb(),
            "device": str(device),
            "device_name": device_name(device),
            "ranks": ranks.size,
            **gpu,
        },
        "changes": [asdict(change) for change in tuned.changes],
        "history": tuned.history,
        "test_curve": TEST_CURVE if any("test_accuracy" in entry for entry in tuned.history) else None,
        "environment": versions(),
    }


def _head_of(staged: StagedModel, moving: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The names of the final layer's weights."""
    return tuple(name for name in moving if name.startswith(f"{staged.head_name}."))


def _predictions(split: str, rows: SplitRows, scores: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    return {f"{split}_ids": np.array(rows.ids), f"{split}_labels": rows.labels, f"{split}_scores": scores}
