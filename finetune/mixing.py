"""A batch in; one whose images are mixed with one another, and their labels alike, out."""

from __future__ import annotations

from torch import Tensor

from finetune.settings import Mix

#: Of the Beta distribution that shares are drawn from, as in torchvision's recipes and the papers.
_ALPHA = {"mixup": 0.2, "cutmix": 1.0}


def mixed(inputs: Tensor, labels: Tensor, *, mix: Mix, n_classes: int) -> tuple[Tensor, Tensor]:
    """Mix a batch: mixup (Zhang et al. 2018, arXiv:1710.09412) or cutmix (Yun et al. 2019, arXiv:1905.04899).

    Args:
        inputs: (n, ...) float32; (n, C, H, W) for cutmix. Each is mixed with the one before it, the first with the
            last (see `finetune.share.Share`).
        labels: (n,) int64.
        mix: which, or none.
        n_classes: of the labels.

    Returns:
        The batch, and labels (n,) int64 where nothing is mixed, else (n, n_classes) float32, the shares of classes.
    """
    if mix == "none":
        return inputs, labels
    from torchvision.transforms import v2

    kind = v2.MixUp if mix == "mixup" else v2.CutMix
    inputs, targets = kind(alpha=_ALPHA[mix], num_classes=n_classes)(inputs, labels)
    return inputs, targets.to(inputs.dtype)
