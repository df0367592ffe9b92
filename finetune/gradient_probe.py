"""A model and rows in; how hard the loss pulls at each stage, and so which to thaw, out. Nothing is trained.

Surgical fine-tuning (Lee et al. 2023, arXiv:2210.11466, section 4.2) takes the norm of a layer's gradient over the norm
of its weights as the sign of what new data ask of it. It is advice: which plan is best, validation tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  as everyone calls it

from featcache.common.errors import UserError
from featcache.models.stages import StagedModel
from finetune.changes import GradientNorms
from finetune.forward import Forward
from finetune.repeating import reproducible, seed_by, shuffled
from finetune.settings import Settings
from finetune.sources import Source
from finetune.thawing import group_of
from finetune.untouched import untouched

#: Batches that are gone through.
N_BATCHES = 8
#: A stage is suggested where its relative gradient is at least this share of the largest.
_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Relative gradient norms before training.

    Attributes:
        gradient_norms: |gradient| / |weights| by stage, in order, as a mean over batches.
        head: the same of the head.
        n_rows: how many rows were looked at.
        suggested: the stages with at least half the largest norm, in order.
    """

    gradient_norms: Mapping[str, float]
    head: float
    n_rows: int
    suggested: tuple[str, ...]

    @property
    def flag(self) -> str:
        """What of ``bin/finetune`` asks for them."""
        return f"--unfreeze {'all' if len(self.suggested) == len(self.gradient_norms) else ','.join(self.suggested)}"

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        return {**asdict(self), "flag": self.flag}


def gradient_probe(
    staged: StagedModel,
    rows: Source,
    *,
    settings: Settings,
    device: torch.device,
    n_batches: int = N_BATCHES,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Probe:
    """Take the gradient of the cross-entropy by all parameters, on some batches, each with the same weights.

    The whole model runs in eval mode, without augmentation, so that nothing in it is random. It is put back as it was,
    gradients included, in every case. A random final layer sends random directions back: a fitted one tells more.

    Args:
        staged: the model, its head made for the classes.
        rows: training rows; some are drawn.
        settings: seed, batch size and precision are used.
        device: where to compute; the model is moved there.
        n_batches: to go through, at most.
        on_batch: called after each with how many were done, and how many there are.

    Raises:
        UserError: the gradient of some stage is not finite.
    """
    batches = shuffled(len(rows.labels), settings.passes_per_epoch(len(rows.labels)), seed=(settings.seed, 0))
    batches = batches[:n_batches]
    with untouched(staged.model), reproducible(settings, device):
        order = torch.channels_last if settings.channels_last else torch.contiguous_format
        model = staged.model.to(device, memory_format=order)  # type: ignore[call-overload]
        source = rows.serving(0)
        forward = Forward(staged, cut=0, source_cut=source.cut, settings=settings, device=device)
        model.eval().requires_grad_(True)
        norms = GradientNorms(dict(model.named_parameters()), group_of(staged))
        seed_by(settings.seed)
        stream = source.batches(batches, augment=False)
        for done, (inputs, numbers) in enumerate(zip(stream, batches, strict=True), start=1):
            model.zero_grad(set_to_none=True)
            labels = torch.from_numpy(rows.labels[numbers]).to(device)
            F.cross_entropy(forward(inputs), labels).backward()  # type: ignore[no-untyped-call]
            norms.add()
            on_batch(done, len(batches))
    means = {}
    for group, mean in norms.means().items():
        if mean is None:
            raise UserError(
                f"the gradient of {group} is not finite in any batch: take --precision fp32, or other weights"
            )
        means[group] = mean
    head = means.pop(staged.head_name)
    in_order = {stage.name: means[stage.name] for stage in staged.stages}
    largest = max(in_order.values())
    return Probe(
        gradient_norms=in_order,
        head=head,
        n_rows=sum(len(numbers) for numbers in batches),
        suggested=tuple(name for name, norm in in_order.items() if norm >= _SHARE * largest),
    )
