"""A thawed model in; the way from a batch to its logits out: frozen stages without gradient, the rest with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from featcache.common.errors import UserError
from featcache.common.machine import full_fp32
from featcache.common.ranks import ALONE, Ranks
from featcache.models.stages import StagedModel
from finetune.settings import Precision, Settings
from finetune.sources import Source

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Forward:
    """The forward pass from what a source gives to logits (n, n_classes) float32, without gradient up to a cut.

    The modules share the model's parameters; making them leaves the model in eval mode.

    Attributes:
        trunk: what runs without gradient, or None where the source has run it already, or nothing is frozen.
        tail: the rest, in one part, or one a stage where each is computed again for the gradient.
    """

    def __init__(
        self, staged: StagedModel, *, cut: int, source_cut: int, settings: Settings, device: torch.device
    ) -> None:
        assert source_cut <= cut, (source_cut, cut)
        self.precision: Precision = settings.precision
        self.device = device
        self.n_classes = staged.head.out_features
        self.trunk: nn.Module | None = staged.part(source_cut, cut) if source_cut < cut else None
        ends: list[int | None] = [*range(cut + 1, len(staged.stages) + 1), None] if settings.checkpointing else [None]
        starts = [cut, *(end for end in ends if end is not None)]
        self.tail: list[nn.Module] = [staged.part(i, end) for i, end in zip(starts, ends, strict=True)]
        self.again = settings.checkpointing
        if settings.compile:
            self.trunk = None if self.trunk is None else torch.compile(self.trunk)  # type: ignore[assignment]
            self.tail = [torch.compile(part) for part in self.tail]  # type: ignore[misc]

    def __call__(self, inputs: Tensor) -> Tensor:
        with autocast(self.device, self.precision):
            if self.trunk is not None:
                with torch.no_grad():
                    inputs = self.trunk(inputs)
            for part in self.tail:
                again = self.again and torch.is_grad_enabled()
                inputs = _computed_again(part, inputs) if again else part(inputs)
        return inputs.float()


class Passes:
    """The forward passes of a phase, one for each cut up to which a source has run the stages.

    Args:
        cut: how many leading stages need no gradient.
        staged, settings, device: as `Forward` takes them.
    """

    def __init__(self, staged: StagedModel, *, cut: int, settings: Settings, device: torch.device) -> None:
        self.staged, self.cut, self.settings, self.device = staged, cut, settings, device
        self.made: dict[int, Forward] = {}

    def of(self, rows: Source) -> tuple[Source, Forward]:
        """Rows as this phase is served them, and the pass from there to logits."""
        source = rows.serving(self.cut)
        if source.cut not in self.made:
            self.made[source.cut] = Forward(
                self.staged, cut=self.cut, source_cut=source.cut, settings=self.settings, device=self.device
            )
        return source, self.made[source.cut]

    def scores(self, rows: Source, ranks: Ranks = ALONE) -> NDArray[np.float32]:
        """Logits (N, n_classes) of all rows, as `scores_of` gives them."""
        source, forward = self.of(rows)
        return scores_of(forward, source, batch_size=self.settings.batch_size, ranks=ranks)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """What makes torch compute in a precision, and in no lower one."""
    if precision == "fp32":
        return full_fp32()
    return torch.autocast(device.type, dtype=_DTYPES[precision])


def scores_of(forward: Forward, source: Source, *, batch_size: int, ranks: Ranks = ALONE) -> NDArray[np.float32]:
    """Logits (N, n_classes) of all rows of a source, as they are; the model is to be in eval mode.

    Ranks share the batches, which are those of one process, and all get all logits.

    Raises:
        UserError: some are not finite.
    """
    groups = np.array_split(np.arange(len(source.labels)), -(-len(source.labels) // batch_size))
    found = [torch.empty(0, forward.n_classes)]
    with torch.no_grad():
        found += [forward(inputs).cpu() for inputs in source.batches(groups[ranks.part(len(groups))], augment=False)]
    gathered = ranks.gather_rows(torch.cat(found).numpy().view(np.uint8))
    scores: NDArray[np.float32] = np.array(gathered).view(np.float32)  # a copy: what was gathered can't be written to
    if not np.isfinite(scores).all():
        raise UserError("the model's scores are not finite: take a lower --lr, --clip 1, or fp32")
    return scores


def _computed_again(part: nn.Module, inputs: Tensor) -> Tensor:
    """Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174); BatchNorm's statistics move the first time only."""
    return checkpoint(
        part, inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_stand_still(part))
    )


@contextmanager
def _statistics_stand_still(part: nn.Module) -> Iterator[None]:
    """By a momentum of 0; without statistics at all, a layer would keep other tensors than the first time."""
    layers = [layer for layer in part.modules() if isinstance(layer, _BatchNorm) and layer.training]
    momenta = [layer.momentum for layer in layers]
    counts = [layer.num_batches_tracked for layer in layers]
    kept = [None if count is None else count.clone() for count in counts]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for count, before in zip(counts, kept, strict=True):
            if count is not None and before is not None:
                count.copy_(before)
