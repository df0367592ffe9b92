"""The weights before and after a fine-tuning in; weights between them, as validation has it, out (WiSE-FT).

Wortsman et al. 2022, arXiv:2109.01903: (1 - a) * start + a * tuned keeps much of what the start can do elsewhere, often
at no cost on the new task, and no cost at inference. A final layer that began as random numbers has no start to go back
to: it stays the tuned one, as in Ilharco et al. 2022 (arXiv:2208.05592). One that began fitted is averaged too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from finetune.sources import Labels


@dataclass(frozen=True, eq=False, kw_only=True)
class Interpolated:
    """Weights between the start and the tuned ones.

    Attributes:
        share: a, of the tuned weights.
        candidates: dicts of share, val_accuracy and val_loss; of one share alone nothing was chosen.
        val_scores: (N, n_classes) float32 logits of the validation rows by the weights of that share.
        as_tuned: the names of what is not averaged: a final layer that began at random.
    """

    share: float
    candidates: list[dict[str, Any]]
    val_scores: NDArray[np.float32]
    as_tuned: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """For ``run.json``."""
        how = "as given"
        if len(self.candidates) > 1:
            how = "the highest accuracy on validation rows, of equals the lowest loss, then the nearest to the start"
        return {
            "share": self.share,
            "how": how,
            "candidates": self.candidates,
            "head": "as tuned: it began at random" if self.as_tuned else "averaged, as the rest",
        }


@torch.no_grad()
def between(
    start: Mapping[str, Tensor], tuned: Mapping[str, Tensor], share: float, *, as_tuned: Collection[str] = ()
) -> dict[str, Tensor]:
    """(1 - share) * start + share * tuned, of the same names and shapes; new tensors where ``tuned`` lie.

    At 0 and 1 these are the bytes of the one or the other. BatchNorm's statistics are averaged likewise: the mean of
    what is linear in the weights averages as they do, and the variance comes out too high by a share of the variance of
    the difference, which is small as long as the weights are near one another. Whole numbers (counts of batches) are
    those of ``tuned``, or of ``start`` at 0.

    Args:
        as_tuned: names that stay as tuned.
    """
    assert start.keys() == tuned.keys()
    found = {}
    for name, end in tuned.items():
        begin = start[name].to(end.device)
        if name in as_tuned or share == 1:
            found[name] = end.detach().clone()
        elif share == 0:
            found[name] = begin.clone()
        else:
            found[name] = torch.lerp(begin, end, share) if end.is_floating_point() else end.detach().clone()
    return found


def interpolate(
    start: Mapping[str, Tensor],
    moving: Mapping[str, Tensor],
    shares: Sequence[float],
    *,
    scores: Callable[[], NDArray[np.float32]],
    labels: Labels,
    as_tuned: Collection[str] = (),
) -> Interpolated:
    """Put the best weights between the start and the tuned ones in the model's place.

    Args:
        start: what the model began with.
        moving: the model's tensors of the same names, tuned; overwritten.
        shares: to choose from, each in [0, 1]; a single one is taken as it is.
        scores: gives the logits (N, n_classes) of the validation rows by the model as it is when called.
        labels: of these rows, int64 (N,).
        as_tuned: names of a final layer that began at random.
    """
    tuned = {name: tensor.detach().clone() for name, tensor in moving.items()}
    candidates: list[dict[str, Any]] = []
    best: tuple[float, float] | None = None
    for share in sorted(set(shares)):
        overwrite(moving, between(start, tuned, share, as_tuned=as_tuned))
        logits = scores()
        loss = float(F.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels)))
        accuracy = float((logits.argmax(axis=1) == labels).mean())
        candidates.append({"share": share, "val_accuracy": accuracy, "val_loss": loss})
        if best is None or (accuracy, -loss) > best:
            best, chosen, val_scores = (accuracy, -loss), share, logits
    overwrite(moving, between(start, tuned, chosen, as_tuned=as_tuned))
    return Interpolated(share=chosen, candidates=candidates, val_scores=val_scores, as_tuned=tuple(as_tuned))


@torch.no_grad()
def overwrite(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values into tensors of the same names."""
    for name, value in values.items():
        tensors[name].copy_(value)
