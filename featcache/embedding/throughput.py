"""Report the share of each step in the time of embedding, and what would make it faster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from featcache.common.machine import fast_precision, n_cores
from featcache.engines.backends import unavailable

if TYPE_CHECKING:
    from featcache.embedding.embed_rows import Filled
    from featcache.embedding.job import Embedding

#: What is measured, in the order in which an image meets it. Decoding includes reading and hashing; resizing includes
#: cropping and the drawing of views.
STEPS = ("decode", "resize", "transfer", "forward", "write")


#: The share of its time without a batch from which on the forward pass counts as kept waiting.
IDLE = 0.25


@dataclass(frozen=True)
class Verdict:
    """Where the time went.

    Attributes:
        images_per_s: of the images that were embedded, from the first batch to the last.
        shares: of the seconds that all steps took together, by step; steps may run at the same time.
        waiting: the share of the time in which the forward pass had no batch to work on.
        bottleneck: one sentence, with the flag that would help.
    """

    images_per_s: float
    shares: dict[str, float]
    waiting: float
    bottleneck: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        told = ", ".join(f"{name} {share:.0%}" for name, share in self.shares.items())
        return f"{self.images_per_s:,.1f} images/s; share of the work: {told}; {self.bottleneck}"


def judge(work: Embedding, filled: Filled) -> Verdict | None:
    """What the times of a build say; None where no image was embedded.

    Args:
        work: tells what was used.
        filled: by this rank.
    """
    total = sum(filled.seconds[step] for step in STEPS)
    if not filled.embedded or total <= 0 or filled.elapsed <= 0:
        return None
    shares = {step: round(filled.seconds[step] / total, 3) for step in STEPS}
    waiting = round(min(1.0, filled.waited / filled.elapsed), 3)
    return Verdict(round(filled.embedded / filled.elapsed, 1), shares, waiting, _advice(work, shares, waiting))


def _advice(work: Embedding, shares: Mapping[str, float], waiting: float) -> str:
    cores = n_cores()
    on_cpu = work.device.type == "cpu"
    largest = max(shares, key=shares.__getitem__)
    reading = "decoding" if shares["decode"] >= shares["resize"] else "resizing"
    # A device of its own idles while it waits; on a CPU reading and computing share the cores.
    if waiting > IDLE and work.workers < cores:
        return f"{reading} is the bottleneck: the model waited {waiting:.0%} of the time; try --workers {cores}"
    if largest in ("decode", "resize") or (waiting > IDLE and not on_cpu):
        mend = "smaller image files" if reading == "decoding" else "a smaller --image-size"
        return f"{reading} is the bottleneck, and all {cores} cores are at it: {mend} or more cores would help"
    if largest == "write":
        return "writing is the bottleneck: a --cache-dir on a faster disk would help, or --storage float16"
    if largest == "transfer":
        return "moving images to the device is the bottleneck: a larger --batch-size may help"
    return f"the forward pass is the bottleneck: {_faster_forward(work)}"


def _faster_forward(work: Embedding) -> str:
    if work.precision == "fp32" and fast_precision(work.device) != "fp32" and "precision" not in work.left_open:
        return "--precision bf16 would be faster"
    if work.device.type != "cpu":
        return "that is the device at work; more of them (torchrun) or a smaller --backbone would help"
    if work.engine != "openvino" and work.precision != "fp16":
        if unavailable("openvino", work.precision, work.device) is not None:
            return "--engine openvino would be faster on most models (pip install 'featcache[openvino]')"
        if "engine" not in work.left_open:
            return "--engine openvino may be faster"
    return "a GPU (--device cuda) or a smaller --backbone would help"
