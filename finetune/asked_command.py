"""The flags of ``bin/finetune`` in; the plan, settings, cache and rows that they ask for out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.commands.console import Console, Parser, add_subset_flags, names, new_parser, subset_of
from featcache.common.errors import CacheError, UsageError
from finetune.forgetting_command import add_forgetting_flags, check_forgetting_flags, forgetting_settings
from heads.excluding_command import add_exclude_flag, exclusion_of

if TYPE_CHECKING:
    import torch

    from featcache.cache.cache_file import Cache
    from featcache.models.stages import StagedModel
    from finetune.plans import Plan
    from finetune.settings import Settings
    from heads.rows import Rows

DESCRIPTION = """Train a backbone on the images of a cache: its head alone, some of its stages, or all of it. The data
set, rows, backbone and weights are those of the newest cache. The epoch is chosen on validation rows, the model is
trained again on train and validation, and the test rows are scored once. Processes that torchrun starts share each
batch."""


#: What ``--lr`` takes for a range test.
AUTO = "auto"


def new_finetune_parser() -> Parser:
    """The parser of ``bin/finetune``."""
    parser = new_parser("finetune", DESCRIPTION)
    plan = parser.add_argument_group("what trains", "without any of these, the head alone")
    plan.add_argument("--unfreeze", metavar="STAGES", help="layer4; layer3,layer4; last:N; or all")
    plan.add_argument(
        "--freeze", metavar="STAGES", help="early (first half after the stem), middle, or names; all others train"
    )
    plan.add_argument("--progressive", action="store_true", help="the head first, then stage by stage from the last")
    plan.add_argument("--from-scratch", action="store_true", help="begin with random weights")
    plan.add_argument("--init-head", type=Path, metavar="RUN", help="begin with this run's linear head (LP-FT)")
    plan.add_argument("--bn", choices=("auto", "eval", "train"), default="auto",
                      help="statistics of thawed BatchNorm: kept (eval) or the batch's (train); auto keeps those of "
                      "pretrained weights (auto)")  # fmt: skip
    rate = parser.add_argument_group("rates")
    rate.add_argument("--lr", type=_rate, metavar="RATE", help="the head's peak, or auto: see --find-lr (by plan)")
    rate.add_argument("--lr-decay", type=float, metavar="D", help="the k-th stage from the end has lr / D^k")
    rate.add_argument("--lr-per-stage", type=_rates, metavar="S=R,S=R", help="rates by stage: layer4=3e-4,fc=1e-3")
    rate.add_argument(
        "--schedule", choices=("cosine", "one-cycle", "step", "constant"), default="cosine", help="(cosine)"
    )
    rate.add_argument("--warmup", type=float, metavar="F", help="share of a phase's steps in which rates rise (0.05)")
    rate.add_argument("--epochs", type=int, metavar="N", help="of all phases together (10, or one a phase if more)")
    rate.add_argument("--phase-epochs", type=_whole_numbers, default=(), metavar="N,N", help="of each phase")
    rate.add_argument("--phase-decay", type=float, default=2.0, metavar="D", help="each phase has rates / D (2)")
    train = parser.add_argument_group("training")
    train.add_argument("--optimizer", choices=("adamw", "adam", "sgd"), default="adamw", help="(adamw)")
    train.add_argument("--momentum", type=float, default=0.9, metavar="M", help="of sgd (0.9)")
    train.add_argument("--weight-decay", type=float, metavar="W", help="(adamw 0.01, adam 0, sgd 1e-4)")
    train.add_argument("--batch-size", type=_batch_size, default=None,
                       help="images a forward pass, of all ranks together, or auto (32)")  # fmt: skip
    train.add_argument("--accumulate", type=int, default=1, metavar="N", help="forward passes a step (1)")
    train.add_argument(
        "--augment", choices=("none", "flip", "crop", "standard", "strong"), default="none", help="preset (none)"
    )
    train.add_argument("--mix", choices=("none", "mixup", "cutmix"), default="none", help="(none)")
    train.add_argument("--label-smoothing", type=float, default=0.0, metavar="E", help="(0)")
    train.add_argument("--clip", type=float, metavar="N", help="largest norm of the gradient")
    train.add_argument("--ema", type=float, metavar="D", help="score and keep a running average of the weights")
    train.add_argument("--patience", type=int, metavar="N", help="stop after N epochs without a better one")
    train.add_argument("--no-refit", action="store_true", help="keep the model that was trained without validation")
    train.add_argument("--record-test-curve", action="store_true", help="score the test rows after every epoch too, "
                       "for the history and its picture; used for nothing")  # fmt: skip
    add_forgetting_flags(parser)
    work = parser.add_argument_group("work")
    work.add_argument("--device", default="auto", help="auto, cuda, mps or cpu (auto)")
    work.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto",
                      help="auto is bf16 on GPUs that have it, else fp32 (auto)")  # fmt: skip
    work.add_argument("--workers", type=int, help="threads that decode ahead (one a core)")
    work.add_argument("--checkpointing", action="store_true", help="less memory: compute stages again for the gradient")
    work.add_argument("--no-channels-last", action="store_true", help="keep images and weights channels first")
    work.add_argument("--compile", action="store_true", help="compile the model with torch.compile")
    work.add_argument(
        "--trunk-cache",
        choices=("auto", "on", "off"),
        default="auto",
        help="run frozen stages once and train from their cached maps; auto where that saves time (auto)",
    )
    work.add_argument("--storage", choices=("float16", "float32"), help="of these maps (what is there, or float16)")
    work.add_argument(
        "--views", type=int, default=0, metavar="K", help="cache K augmented views an image, instead of --augment"
    )
    work.add_argument("--resume", action="store_true", help="go on with the same command's interrupted training")
    work.add_argument("--dry-run", action="store_true", help="print the plan, and train nothing")
    work.add_argument("--find-lr", action="store_true", help="suggest rates by a range test, and train nothing")
    work.add_argument("--probe", action="store_true", help="suggest what to unfreeze, and train nothing")
    cache = parser.add_argument_group("cache", "the newest in --cache-dir that matches")
    cache.add_argument("--cache", type=Path, metavar="FILE", help="this file")
    cache.add_argument("--dataset", help="of this data set")
    cache.add_argument("--backbone", help="of this backbone")
    cache.add_argument("--val-fraction", type=float, default=0.1, metavar="F", help="of train, to choose on (0.1)")
    add_subset_flags(parser)
    add_exclude_flag(parser)
    parser.add_argument("--name", help="of the run (data set, backbone, method and a number)")
    return parser


def check_flags(arguments: argparse.Namespace) -> None:
    """Refuse, before torch is imported, flags that make no sense. Raises UsageError."""
    check_forgetting_flags(arguments)
    if not 0 < arguments.val_fraction < 1:
        raise UsageError(f"--val-fraction {arguments.val_fraction:g}: expected a number between 0 and 1")
    for flag, number in (("workers", arguments.workers), ("views", arguments.views)):
        if number is not None and number < 0:
            raise UsageError(f"--{flag} {number}: expected a whole number from 0 on")
    trials = ("--dry-run", "--find-lr", "--probe", "--resume")
    asked = [flag for flag in trials if getattr(arguments, flag[2:].replace("-", "_"))]
    if len(asked) > 1:
        raise UsageError(f"{asked[0]} and {asked[1]} exclude one another: give one of them")
    if arguments.lr == AUTO and asked and asked != ["--resume"]:
        raise UsageError(
            f"--lr auto and {asked[0]} exclude one another: --find-lr alone finds rates and trains nothing"
        )
    if arguments.lr == AUTO and arguments.lr_per_stage:
        raise UsageError("--lr auto and --lr-per-stage exclude one another: --lr-decay tells ratios, which auto keeps")
    if arguments.name is not None:
        from heads.runs import check_run_name

        check_run_name(arguments.runs_dir, arguments.name)


def cache_of(arguments: argparse.Namespace, console: Console) -> Cache:
    """The cache that was named, or the newest that matches, of maps or vectors. Raises CacheError for none."""
    from featcache.cache.cache_file import Cache, find_caches
    from heads.asked_command import asked_dataset, found_instead, tell_passed_over

    wanted = {**asked_dataset(arguments.dataset), "backbone": arguments.backbone}
    if arguments.cache:
        named = Cache.open(arguments.cache)
        named.require(**wanted)
        if named.is_byproduct:
            raise CacheError(f"{named.path} was made by a fine-tuning for itself: name the cache that it began with")
        return named
    refusals: list[CacheError] = []
    found = find_caches(arguments.cache_dir, on_refusal=refusals.append)
    caches = [cache for cache in found if not cache.is_byproduct]
    for cache in caches:
        if all(value in (None, cache.told()[key]) for key, value in wanted.items()):
            tell_passed_over(console, refusals, cache)
            return cache
    flags = {"dataset": arguments.dataset, "backbone": arguments.backbone}
    asked = " ".join(f"--{key} {value}" for key, value in flags.items() if value)
    raise CacheError(
        f"{arguments.cache_dir}: no cache{' for ' + asked if asked else ''} (found {found_instead(caches, refusals)}), "
        f"which says what to train on; make one with bin/embed{' ' + asked if asked else ''}"
    )


def rows_of(arguments: argparse.Namespace, cache: Cache) -> Rows:
    """The rows that the flags choose from the cache: those of ``bin/fit-head`` with the same flags."""
    from heads.rows import load_rows

    return load_rows(
        cache,
        subset=subset_of(arguments),
        exclude=exclusion_of(arguments),
        val_fraction=arguments.val_fraction,
        seed=arguments.seed,
        pool_maps=True,
        views="plain",
        rows_only=True,
    )


def plan_of(arguments: argparse.Namespace, staged: StagedModel, *, pretrained: bool) -> Plan:
    """The plan that the flags ask for. Raises UsageError where they contradict one another."""
    from finetune.planning import make_plan
    from finetune.settings import usual_rate

    flags: dict[str, Any] = {
        "epochs": arguments.epochs,
        "unfreeze": arguments.unfreeze,
        "freeze": arguments.freeze,
        "progressive": arguments.progressive,
        "phase_epochs": arguments.phase_epochs,
        "phase_decay": arguments.phase_decay,
        "lr_decay": arguments.lr_decay,
        "lr_per_stage": arguments.lr_per_stage,
        "from_scratch": arguments.from_scratch,
        "init_head": None if arguments.init_head is None else str(arguments.init_head),
        "batch_norm": arguments.bn,
        "pretrained": pretrained,
    }
    stages = [stage.name for stage in staged.stages]
    trains = bool(make_plan(stages, staged.head_name, lr=1.0, **flags).trained)
    usual = usual_rate(arguments.optimizer, trains=trains, from_scratch=arguments.from_scratch)
    return make_plan(stages, staged.head_name, lr=usual if arguments.lr in (None, AUTO) else arguments.lr, **flags)


def settings_of(arguments: argparse.Namespace, device: torch.device) -> Settings:
    """The settings that the flags ask for. Raises UsageError where a number is out of range."""
    from featcache.common.machine import fast_precision
    from finetune.settings import Settings

    precision = arguments.precision
    if precision == "auto":
        precision = fast_precision(device) if device.type == "cuda" else "fp32"
    return Settings(
        optimizer=arguments.optimizer,
        momentum=arguments.momentum,
        weight_decay=arguments.weight_decay,
        schedule=arguments.schedule,
        warmup=arguments.warmup,
        batch_size=arguments.batch_size or 32,
        accumulate=arguments.accumulate,
        label_smoothing=arguments.label_smoothing,
        augment=arguments.augment,
        mix=arguments.mix,
        clip=arguments.clip,
        ema=arguments.ema,
        **forgetting_settings(arguments),
        precision=precision,
        checkpointing=arguments.checkpointing,
        channels_last=not arguments.no_channels_last,
        compile=arguments.compile,
        patience=arguments.patience,
        seed=arguments.seed,
    )


def _rate(text: str) -> float | str:
    if text == AUTO:
        return text
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a number") from error


def _batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a whole number from 1 to 65536")
    return int(text)


def _whole_numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in names(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 1,2,5") from error


def _rates(text: str) -> dict[str, float]:
    try:
        pairs = [pair.split("=") for pair in names(text)]
        rates = {stage: float(rate) for stage, rate in pairs}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form layer4=3e-4,fc=1e-3") from error
    if not rates or not all(0 < rate < float("inf") for rate in rates.values()):
        raise argparse.ArgumentTypeError(f"{text!r}: expected rates above 0, as in layer4=3e-4,fc=1e-3")
    return rates
