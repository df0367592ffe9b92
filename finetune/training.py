"""A model, a plan and rows in; the trained model out. The one loop of all plans, to be read from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  as everyone calls it
from numpy.typing import NDArray

from featcache.common.errors import UserError
from featcache.common.ranks import ALONE, Ranks
from featcache.models.stages import StagedModel
from finetune.best import better, loss_and_accuracy
from finetune.changes import MEASURED_STEPS, GradientNorms
from finetune.checkpointing import load_checkpoint, save_checkpoint
from finetune.forward import Passes
from finetune.mixing import mixed
from finetune.optimizers import rates_of, set_rates
from finetune.penalties import Term
from finetune.plans import Plan
from finetune.rates import rate_factor
from finetune.repeating import reproducible, seed_by, shuffled
from finetune.settings import Settings
from finetune.share import Share
from finetune.sources import Source
from finetune.state import TrainingState
from finetune.synced_norms import synced_norms
from finetune.thawing import check_frozen, check_gradients, frozen_sha256, group_of, thaw

#: Steps after which the loss is looked at: on a GPU that waits for all that was asked of it.
_LOOK = 20
#: The most that writing checkpoints may take of the time; where epochs are short, some are not kept.
CHECKPOINT_SHARE = 0.1


@dataclass(frozen=True, eq=False, kw_only=True)
class Trained:
    """What training came to; the model itself was trained in place, and has its best epoch's weights.

    Attributes:
        history: an entry an epoch: epoch (from 1), phase, train_loss and train_accuracy (of the batches as they were
            trained on), val_loss and val_accuracy (None without validation), lr (the head's, at the epoch's end),
            rates (every group's, likewise), gradients (norms relative to the weights', by group, see
            `finetune.changes`), seconds (validation included), images_per_s (in training), penalty (the mean over
            steps of the terms that were added to the loss) where there are some, and test_loss and test_accuracy where
            they were asked for.
        best_epoch: how many epochs made the weights: those up to the best by validation, or all without validation.
        val_scores: (N, n_classes) float32 logits of the validation rows by these weights, or None.
        frozen_sha256: of all that never trains, before and after.
        stopped_early: whether patience ran out.
    """

    history: list[dict[str, Any]]
    best_epoch: int
    val_scores: NDArray[np.float32] | None
    frozen_sha256: dict[str, str]
    stopped_early: bool


def train(
    staged: StagedModel,
    plan: Plan,
    rows: Source,
    *,
    settings: Settings,
    validation: Source | None,
    device: torch.device,
    test: Source | None = None,
    terms: Sequence[Term] = (),
    ranks: Ranks = ALONE,
    stop_after: int | None = None,
    checkpoint: Path | None = None,
    fingerprint: str = "",
    resume: bool = False,
    on_epoch: Callable[[dict[str, Any]], None] = lambda entry: None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Trained:
    """Train a model as a plan says.

    All that is random in a step follows from the seed, the epoch and the batch's number, and all else is in the
    checkpoint of an epoch before; so a training that is gone on with ends with the bytes of one that never stopped.

    Ranks share the rows of each batch, and add their gradients up before each step, so that all take the step that one
    process would take, but for rounding, and for dropout, which each draws for its own rows. The gradients are summed
    here rather than by DistributedDataParallel, which binds a fixed set of parameters to one module's forward pass:
    plans thaw parameters on the way, terms have forward passes of their own, and a mean over ranks is none over images
    where shares differ by one.

    Args:
        staged: the model, its head made for the classes; trained in place.
        plan: what trains when.
        rows: to train on.
        settings: how.
        validation: rows that decide which epoch is the best, and whether to stop early; None trains to the end.
        device: where to compute; the model is moved there.
        test: rows to be scored after each epoch, for the history and nothing else.
        terms: to be added to the loss of each step, beside that of its images.
        ranks: the processes that train together, joined; all have the same rows and weights, each a device of its own.
        stop_after: so many epochs of the plan's are gone through; the rates are as if all were.
        checkpoint: a file to keep the state after an epoch in: after the first, the last, and others as
            `CHECKPOINT_SHARE` allows.
        fingerprint: of all that decides the result, so that no other training's checkpoint is gone on with.
        resume: whether to go on from the checkpoint, where there is one.
        on_epoch: called with each epoch's entry of the history.
        on_step: called after each step with the images that were gone through, and with all that will be.

    Raises:
        UserError: the loss is not finite, the checkpoint is damaged or another training's, or ranks can't share this.
        FrozenError: something that is frozen moved, or something that should train does not.
    """
    order = torch.channels_last if settings.channels_last else torch.contiguous_format
    model = staged.model.to(device, memory_format=order)  # type: ignore[call-overload]
    n_rows = len(rows.labels)
    n_micro, n_steps = settings.passes_per_epoch(n_rows), settings.steps_per_epoch(n_rows)
    share = Share(ranks=ranks, mixes=settings.mix != "none")
    share.check(n_rows, n_micro)
    before = frozen_sha256(staged, plan.trained, plan.batch_norm)
    state = TrainingState(staged, plan, settings=settings, device=device)
    optimizer, scaler = state.optimizer, state.scaler
    if resume and checkpoint is not None and (kept := load_checkpoint(checkpoint, fingerprint=fingerprint)):
        state.go_on(*kept)
    progress = state.progress
    ranks.require_same(progress.epochs, "checkpoints")

    last_epoch = plan.epochs if stop_after is None else stop_after
    phase_number = -1
    last_save, save_s = time.perf_counter(), 0.0
    with reproducible(settings, device), synced_norms(staged, plan, device=device, ranks=ranks):
        for epoch in range(progress.epochs, progress.epochs if progress.stopped else last_epoch):
            begun = time.perf_counter()
            number, first_epoch = plan.phase_at(epoch)
            phase = plan.phases[number]
            if number != phase_number:  # a phase begins, or is gone on with
                phase_number = number
                thawed = thaw(staged, plan, phase)
                thawed.check_optimized(optimizer)
                never_moved = set(thawed.parameters)
                frozen = None if phase.stages == plan.trained else thawed.frozen_sha256()  # the former is `before`
                passes = Passes(staged, cut=thawed.cut, settings=settings, device=device)
                source, forward = passes.of(rows)

            thawed.set_modes()
            gradients = GradientNorms(thawed.parameters, group_of(staged))
            micro_batches = shuffled(n_rows, n_micro, seed=(settings.seed, epoch))
            stream = source.batches(micro_batches, augment=True, share=share)
            n_seen = epoch * n_rows
            loss_sum = torch.zeros((), device=device)
            right = torch.zeros((), dtype=torch.int64, device=device)
            penalty_sum = torch.zeros((), device=device)
            for step in range(n_steps):
                factor = phase.factor * rate_factor(
                    (epoch - first_epoch) * n_steps + step,
                    phase.epochs * n_steps,
                    schedule=settings.schedule,
                    rise=settings.rise,
                )
                set_rates(optimizer, factor)
                turns = range(step * settings.accumulate, min((step + 1) * settings.accumulate, n_micro))
                n_images = sum(len(micro_batches[i]) for i in turns)
                for i in turns:
                    seed_by(settings.seed, epoch, i)
                    inputs = next(stream)
                    numbers = micro_batches[i][share.places(len(micro_batches[i]))]
                    labels = torch.from_numpy(rows.labels[numbers]).to(device)
                    inputs, targets = mixed(inputs, labels, mix=settings.mix, n_classes=staged.head.out_features)
                    inputs, targets, labels = map(share.own, (inputs, targets, labels))
                    if not ranks.is_first:
                        seed_by(settings.seed, epoch, i, ranks.rank)  # dropout is each rank's own
                    logits = forward(inputs)
                    loss = F.cross_entropy(logits, targets, label_smoothing=settings.label_smoothing, reduction="sum")
                    scaler.scale(loss / n_images).backward()  # type: ignore[no-untyped-call]
                    loss_sum += loss.detach()
                    right += (logits.detach().argmax(dim=1) == labels).sum()
                never_moved &= thawed.without_gradient()
                for term in terms:
                    penalty = term(thawed, epoch=epoch, step=step, n_steps=n_steps)
                    if penalty.requires_grad:
                        scaler.scale(penalty).backward()  # type: ignore[no-untyped-call]
                        penalty_sum += penalty.detach()
                ranks.add_up(thawed.gradients())
                scaler.unscale_(optimizer)
                if step % -(-n_steps // MEASURED_STEPS) == 0:
                    gradients.add()
                if settings.clip is not None:
                    torch.nn.utils.clip_grad_norm_(list(thawed.parameters.values()), settings.clip)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad(set_to_none=True)
                if state.average is not None:
                    state.average.update()
                n_seen += n_images
                on_step(n_seen, last_epoch * n_rows)
                if step % _LOOK == 0 or step == n_steps - 1:
                    _refuse_not_finite(float(loss_sum), epoch, step)
            check_gradients(never_moved)
            ranks.add_up([loss_sum, right, penalty_sum])
            seconds = time.perf_counter() - begun

            entry = {
                "epoch": epoch + 1,
                "phase": plan.name_of(phase),
                "train_loss": float(loss_sum) / n_rows,
                "train_accuracy": int(right) / n_rows,
                "val_loss": None,
                "val_accuracy": None,
                "lr": rates_of(optimizer)[plan.head],
                "rates": {group: rates_of(optimizer)[group] for group in (*phase.stages, plan.head)},
                "gradients": gradients.means(),
                "seconds": 0.0,
                "images_per_s": round(n_rows / seconds, 1),
                **({"penalty": float(penalty_sum) / n_steps} if terms else {}),
            }
            model.eval()
            with nullcontext() if state.average is None else state.average.in_place():
                if validation is not None:
                    scores = passes.scores(validation, ranks)
                    loss_val, accuracy = loss_and_accuracy(scores, validation.labels)
                    entry |= {"val_loss": loss_val, "val_accuracy": accuracy}
                    progress.best = better(progress.best, epoch, loss_val, accuracy, scores, state.moving)
                    is_last_phase = number == len(plan.phases) - 1
                    waited = epoch - max(progress.best.epoch, first_epoch)
                    progress.stopped = is_last_phase and settings.patience is not None and waited >= settings.patience
                entry["seconds"] = round(time.perf_counter() - begun, 3)
                if test is not None:  # told, and used for nothing
                    loss_test, accuracy = loss_and_accuracy(passes.scores(test, ranks), test.labels)
                    entry |= {"test_loss": loss_test, "test_accuracy": accuracy}
            progress.history.append(entry)
            progress.epochs = epoch + 1
            is_over = progress.stopped or epoch + 1 == last_epoch
            if frozen is not None and (is_over or epoch + 1 == first_epoch + phase.epochs):
                check_frozen(frozen, thawed.frozen_sha256(), f"what phase {plan.name_of(phase)} freezes")
            now = time.perf_counter()
            if checkpoint is not None and ranks.is_first and (is_over or now - last_save >= save_s / CHECKPOINT_SHARE):
                save_checkpoint(checkpoint, progress, state.kept(), fingerprint=fingerprint)
                last_save = time.perf_counter()
                save_s = last_save - now
            on_epoch(entry)
            if is_over:
                break

    state.settle(ranks)
    model.eval().requires_grad_(False)
    after = frozen_sha256(staged, plan.trained, plan.batch_norm)
    check_frozen(before, after, "what the plan freezes")
    return Trained(
        history=progress.history,
        best_epoch=progress.best.epoch + 1 if progress.best is not None else progress.epochs,
        val_scores=progress.best.scores if progress.best is not None else None,
        frozen_sha256={"before": before, "after": after},
        stopped_early=progress.stopped,
    )


def _refuse_not_finite(loss: float, epoch: int, step: int) -> None:
    if not np.isfinite(loss):
        raise UserError(
            f"the loss is not finite by step {step + 1} of epoch {epoch + 1}: take a lower --lr, --clip 1, or fp32"
        )
