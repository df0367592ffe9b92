"""How the loop trains, whatever the plan: optimizer, schedule, regularisation, precision. Checked when made."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from featcache.common.errors import UsageError, one_of

Optimizer = Literal["adamw", "adam", "sgd"]
Schedule = Literal["cosine", "one-cycle", "step", "constant"]
Augment = Literal["none", "flip", "crop", "standard", "strong"]
Mix = Literal["none", "mixup", "cutmix"]
Precision = Literal["fp32", "bf16", "fp16"]

#: The head's peak rate where none is given: for the head alone, for pretrained stages, from scratch.
RATES: dict[str, tuple[float, float, float]] = {
    "adamw": (1e-3, 3e-4, 1e-3),
    "adam": (1e-3, 3e-4, 1e-3),
    "sgd": (0.03, 0.01, 0.05),
}
#: Weight decay where none is given; adam's is added to the gradient, so that it takes less.
DECAYS: dict[str, float] = {"adamw": 0.01, "adam": 0.0, "sgd": 1e-4}
#: The shares of the tuned weights that ``--wise-ft auto`` tries.
ALL_SHARES = tuple(round(0.1 * k, 1) for k in range(11))


def usual_rate(optimizer: str, *, trains: bool, from_scratch: bool) -> float:
    """The head's peak rate where none is given; ``trains`` tells whether some stage of the backbone does."""
    head, thawed, scratch = RATES[optimizer]
    return scratch if from_scratch else thawed if trains else head


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that decides how a plan is carried out.

    Attributes:
        optimizer, momentum, weight_decay: momentum is SGD's, without Nesterov's; biases and norms have no weight decay.
        schedule: the shape of the rate over a phase.
        warmup: the share of a phase's steps in which the rate rises; None is 0.3 for one-cycle, else 0.05.
        batch_size: images in a forward pass, at most.
        accumulate: forward passes whose gradients are added up for one step.
        label_smoothing: in [0, 1) (Szegedy et al. 2016).
        augment: see `finetune.image_augmentation`.
        mix: mixup or cutmix of each batch.
        clip: the largest norm of the gradient of all parameters together; None for no limit.
        ema: the decay of a running average of the weights, which is what is scored and kept; None for none.
        precision: of the forward pass; bf16 and fp16 by autocast, fp16 with its loss scaled.
        checkpointing: whether each thawed stage keeps its input alone and is computed again for the gradient.
        channels_last: the memory order of images and weights.
        compile: whether torch.compile is applied.
        l2_sp: the strength of L2-SP, None for none: thawed stages are pulled to the weights that they began with, and
            have no weight decay (`finetune.penalties`).
        ewc: the strength of EWC, likewise, weighted by the Fisher information (`finetune.fisher`).
        wise_ft: shares of the tuned weights in the final ones, from 0 to 1, the rest being those of the start; one is
            taken as given, of several the best by validation (`finetune.interpolation`); none leaves them as tuned.
        rehearse: the weight of rehearsal, None for none (`finetune.rehearsal`).
        rehearsed: the fingerprint of the cached features that rehearsal keeps to.
        patience: epochs of the last phase without a better one, after which training ends; None trains to the end.
        seed: of the head's weights, the order, augmentation and dropout.

    Raises:
        UsageError: a number or name out of range.
    """

    optimizer: Optimizer = "adamw"
    momentum: float = 0.9
    weight_decay: float | None = None
    schedule: Schedule = "cosine"
    warmup: float | None = None
    batch_size: int = 32
    accumulate: int = 1
    label_smoothing: float = 0.0
    augment: Augment = "none"
    mix: Mix = "none"
    clip: float | None = None
    ema: float | None = None
    precision: Precision = "fp32"
    checkpointing: bool = False
    channels_last: bool = True
    compile: bool = False
    l2_sp: float | None = None
    ewc: float | None = None
    wise_ft: tuple[float, ...] = ()
    rehearse: float | None = None
    rehearsed: str | None = None
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for flag, value, kind in (
            ("optimizer", self.optimizer, Optimizer),
            ("schedule", self.schedule, Schedule),
            ("augmentation", self.augment, Augment),
            ("way to mix", self.mix, Mix),
            ("precision", self.precision, Precision),
        ):
            if value not in get_args(kind):
                raise one_of(flag, value, list(get_args(kind)))
        for name, number in (("batch-size", self.batch_size), ("accumulate", self.accumulate)):
            if number < 1:
                raise UsageError(f"--{name} {number}: expected a whole number of at least 1")
        if self.patience is not None and self.patience < 1:
            raise UsageError(f"--patience {self.patience}: expected a whole number of at least 1")
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed}: expected a whole number from 0 on")
        shares = {"label-smoothing": self.label_smoothing, "momentum": self.momentum}
        shares |= {"warmup": self.warmup or 0.0, "ema": self.ema or 0.0}
        for name, share in shares.items():
            if not 0 <= share < 1:
                raise UsageError(f"--{name} {share:g}: expected a number from 0 to below 1")
        if self.weight_decay is not None and not 0 <= self.weight_decay < float("inf"):
            raise UsageError(f"--weight-decay {self.weight_decay:g}: expected a number from 0 on")
        if self.clip is not None and not 0 < self.clip < float("inf"):
            raise UsageError(f"--clip {self.clip:g}: expected a number above 0")
        for name, strength in (("l2-sp", self.l2_sp), ("ewc", self.ewc), ("rehearse-weight", self.rehearse)):
            if strength is not None and not 0 < strength < float("inf"):
                raise UsageError(f"--{name} {strength:g}: expected a number above 0")
        for part in self.wise_ft:
            if not 0 <= part <= 1:
                raise UsageError(f"--wise-ft {part:g}: expected numbers from 0 (the start) to 1 (as tuned), or auto")

    @property
    def decay(self) -> float:
        """The weight decay that is applied."""
        return DECAYS[self.optimizer] if self.weight_decay is None else self.weight_decay

    @property
    def holds_start(self) -> bool:
        """Whether thawed stages are pulled to their start, and so have no weight decay."""
        return self.l2_sp is not None or self.ewc is not None

    @property
    def rise(self) -> float:
        """The share of a phase's steps in which the rate rises."""
        return (0.3 if self.schedule == "one-cycle" else 0.05) if self.warmup is None else self.warmup

    def passes_per_epoch(self, n_rows: int) -> int:
        """Forward passes that go through all rows, each of as many rows as the others or one less."""
        return -(-n_rows // self.batch_size)

    def steps_per_epoch(self, n_rows: int) -> int:
        """Steps of the optimizer."""
        return -(-self.passes_per_epoch(n_rows) // self.accumulate)

    def to_json(self) -> dict[str, Any]:
        """All of it, with what was left open settled."""
        return {**asdict(self), "weight_decay": self.decay, "warmup": self.rise}
