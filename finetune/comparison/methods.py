"""The name of a method, with its settings, in; what is to be fitted, checked, out. Data only: nothing is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from featcache.common.errors import UsageError, one_of
from finetune.comparison.results import Kind
from finetune.settings import Settings
from heads.classifiers import NAMES

Strategy = Literal["features", "partial", "full"]

#: Peak rates that are tried where none else is said: so many of these multiples of the method's own.
TRIALS = 3
RATE_FACTORS = (1.0, 1 / 3, 3.0, 1 / 10, 10.0, 1 / 30, 30.0, 1 / 100, 100.0)

#: The rate that a range test finds.
AUTO = "auto"

#: The head whose weights LP-FT begins with.
LP_HEAD = "logreg"
#: Of discriminative rates (Howard & Ruder 2018, arXiv:1801.06146, section 3.2).
LR_DECAY = 2.6

_PLANS = ("head", "full", "progressive", "discriminative", "lp-ft", "scratch")
_PREFIXES = ("partial:", "freeze:")

#: What a method may be given, by the names of the flags of ``bin/finetune``, and of what type.
_NUMBER = (int, float)
_SETTINGS: dict[str, type | tuple[type, ...]] = {
    "optimizer": str, "momentum": _NUMBER, "weight-decay": _NUMBER, "schedule": str, "warmup": _NUMBER,
    "batch-size": int, "accumulate": int, "label-smoothing": _NUMBER, "augment": str, "mix": str, "clip": _NUMBER,
    "ema": _NUMBER, "precision": str, "patience": int,
}  # fmt: skip
_PLANNED: dict[str, type | tuple[type, ...]] = {
    "epochs": int, "lr": (*_NUMBER, str), "unfreeze": str, "lr-decay": _NUMBER, "lr-per-stage": dict,
    "phase-epochs": list, "phase-decay": _NUMBER, "bn": str, "trials": int,
}  # fmt: skip
_SEEN: dict[str, type | tuple[type, ...]] = {
    "fraction": _NUMBER, "image-size": int, "resize": str, "backbones": list,
}  # fmt: skip
#: All that fine-tuning may be given.
TRAINING_KEYS = {**_SETTINGS, **_PLANNED}


@dataclass(frozen=True, kw_only=True)
class Method:
    """Something to fit.

    Attributes:
        name: in tables.
        what: a classifier's name, head, full, progressive, discriminative, lp-ft, scratch, partial:STAGES or
            freeze:STAGES, stages joined by ``+``.
        epochs: of fine-tuning; None leaves them to the plan.
        lr: the head's peak rate that is tried first, or auto for a range test; None leaves it to plan and optimizer.
        trials: how many peak rates are tried.
        plan: further keyword arguments of `finetune.planning.make_plan`.
        settings: keyword arguments of `finetune.settings.Settings`.
        fraction: of the training rows, where it is not that of the comparison.
        preprocessing: image_size and resize, where they are not the comparison's.
        backbones: that it is for; empty for all.
    """

    name: str
    what: str
    epochs: int | None = None
    lr: float | str | None = None
    trials: int = TRIALS
    plan: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    fraction: float | None = None
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    backbones: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        return "head" if self.what in NAMES else "finetune"

    @property
    def strategy(self) -> Strategy:
        """Which of the rules of thumb it is an instance of."""
        return strategy_of(self.what)

    @property
    def needs_head(self) -> bool:
        """Whether it begins with a head that is fitted first."""
        return self.what == "lp-ft"

    def to_json(self) -> dict[str, Any]:
        """What decides its result: all but what the cell tells, and its name."""
        told = asdict(self)
        del told["name"], told["fraction"], told["backbones"]
        return told


def strategy_of(what: str) -> Strategy:
    """Features alone, a part of the backbone, or all of it."""
    if what in NAMES or what == "head":
        return "features"
    return "partial" if what.startswith(_PREFIXES) else "full"


def method_of(what: str, *, name: str | None = None, given: Mapping[str, Any] | None = None) -> Method:
    """The method of that name.

    Args:
        what: see `Method`.
        name: in tables; its own unless told otherwise.
        given: settings by the names of ``bin/finetune``'s flags, and fraction, image-size and resize.

    Raises:
        UsageError: an unknown method or key, or a value of another type or out of range.
    """
    given = dict(given or {})
    _check_name(what)
    is_head = what in NAMES
    known = _SEEN if is_head else {**TRAINING_KEYS, **_SEEN}
    for key, value in given.items():
        if key not in known:
            if is_head and key in TRAINING_KEYS:
                raise UsageError(f"{key} for {what}: a cached head is not trained by epochs; leave it out")
            raise one_of(f"key for {what}", key, list(known))
        kind = known[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            expected = kind.__name__ if isinstance(kind, type) else "number"
            raise UsageError(f"{key} = {value!r} for {what}: expected a value of the type {expected}")
    if is_head:
        return Method(name=name or what, what=what, trials=1, **_seen(given))
    trials = given.get("trials", TRIALS)
    if not 1 <= trials <= len(RATE_FACTORS):
        raise UsageError(f"trials {trials} for {what}: expected a whole number from 1 to {len(RATE_FACTORS)}")
    if isinstance(given.get("lr"), str) and given["lr"] != AUTO:
        raise UsageError(f"lr = {given['lr']!r} for {what}: expected a number, or {AUTO!r} for a range test")
    if "unfreeze" in given and what not in ("progressive", "discriminative"):
        raise UsageError(f"unfreeze for {what}: its name tells what trains; it is for progressive and discriminative")
    settings = {key.replace("-", "_"): value for key, value in given.items() if key in _SETTINGS}
    Settings(**settings)  # raises where a value is out of range
    own = ("unfreeze", "lr-decay", "lr-per-stage", "phase-decay")
    plan = {key.replace("-", "_"): given[key] for key in own if key in given}
    plan |= {"batch_norm": given["bn"]} if "bn" in given else {}
    plan |= {"phase_epochs": tuple(given["phase-epochs"])} if "phase-epochs" in given else {}
    return Method(
        name=name or what,
        what=what,
        epochs=given.get("epochs"),
        lr=given.get("lr"),
        trials=trials,
        plan={**_plan(what, plan), **plan},
        settings=settings,
        **_seen(given),
    )


def _check_name(what: str) -> None:
    if what in NAMES or what in _PLANS:
        return
    if what.startswith(_PREFIXES) and what.partition(":")[2]:
        return
    raise one_of("method", what, [*NAMES, *_PLANS, "partial:layer4", "freeze:early"])


def _plan(what: str, given: Mapping[str, Any]) -> dict[str, Any]:
    kind, _, stages = what.partition(":")
    named = stages.replace("+", ",")
    plans: dict[str, dict[str, Any]] = {
        "head": {},
        "full": {"unfreeze": "all"},
        "progressive": {"progressive": True},
        "discriminative": {} if "lr_per_stage" in given else {"lr_decay": LR_DECAY},
        "lp-ft": {},
        "scratch": {"from_scratch": True},
        "partial": {"unfreeze": named},
        "freeze": {"freeze": named},
    }
    # partial:last:2 has its stages after the first colon
    return plans[kind]


def _seen(given: Mapping[str, Any]) -> dict[str, Any]:
    preprocessing = {key.replace("-", "_"): given[key] for key in ("image-size", "resize") if key in given}
    fraction = given.get("fraction")
    if fraction is not None and not 0 < fraction <= 1:
        raise UsageError(f"fraction {fraction:g}: expected a number above 0 and at most 1")
    backbones = tuple(given.get("backbones", ()))
    if not all(isinstance(name, str) for name in backbones):
        raise UsageError("backbones: expected a list of names")
    return {"fraction": fraction, "preprocessing": preprocessing, "backbones": backbones}
