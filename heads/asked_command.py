"""The flags of ``bin/fit-head`` in; the caches, rows, recipes and workers that they ask for out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from featcache.commands.console import Console, Parser, add_subset_flags, names, new_parser, numbers, subset_of
from featcache.common.errors import CacheError, UsageError
from heads.classifiers import CLASSIFIERS
from heads.excluding_command import add_exclude_flag, exclusion_of

if TYPE_CHECKING:
    from featcache.cache.cache_file import Cache
    from heads.recipe import Recipe
    from heads.source import Source
    from heads.sweep import Workers

#: So many files are named, of those that can't be opened or were not asked for.
_FEW = 3

DESCRIPTION = """Fit a classifier head on cached features. Hyper-parameters are chosen on validation rows, the head is
fitted again on train and validation, and the test rows are scored once."""


def new_fit_head_parser() -> Parser:
    """The parser of ``bin/fit-head``."""
    parser = new_parser("fit-head", DESCRIPTION)
    head = parser.add_argument_group("head")
    head.add_argument(
        "--clf",
        type=_classifiers,
        metavar="NAME",
        help=f"the classifier, or several: a,b; all fits each (logreg; --rank: ridge). {', '.join(CLASSIFIERS)}",
    )
    head.add_argument(
        "--class-weight", choices=("none", "balanced"), default="none", help="balanced: classes count alike"
    )
    head.add_argument("--no-refit", action="store_true", help="keep the head that was fitted without validation rows")
    head.add_argument("--calibrate", action="store_true", help="fit a temperature on rows that the head did not see")
    head.add_argument("--device", default="auto", help="auto, cuda, mps or cpu, for linear, mlp, knn and logreg (auto)")
    choice = parser.add_argument_group("choice of hyper-parameters")
    choice.add_argument("--val-fraction", type=float, default=0.1, metavar="F", help="of train, to choose on (0.1)")
    choice.add_argument(
        "--cv", type=_folds, metavar="K|loo", help="choose by K folds, or by leaving out each row, exactly"
    )
    choice.add_argument("--nested", type=int, metavar="K", help="estimate the whole procedure on K outer folds as well")
    choice.add_argument(
        "--rule", choices=("best", "one-se"), default="best", help="one-se: the simplest within its error"
    )
    choice.add_argument("--select-by", choices=("accuracy", "balanced-accuracy"), default="accuracy", help="(accuracy)")
    told = parser.add_argument_group("evidence")
    told.add_argument(
        "--report", action="store_true", help="classes one by one, confusions, reliability; drawn as well"
    )
    told.add_argument(
        "--against", type=Path, action="append", default=[], metavar="RUN", help="compare with this run, too"
    )
    told.add_argument("--seeds", type=int, default=1, metavar="N", help="fit with N seeds from --seed on (1)")
    told.add_argument(
        "--fractions", type=numbers, metavar="F,F", help="learning curve over shares of the training rows"
    )
    told.add_argument("--shots", type=_whole_numbers, metavar="N,N", help="learning curve over training rows per class")
    told.add_argument("--rank", action="store_true", help="rank the caches of the data set by a quick head; no runs")
    cache = parser.add_argument_group("cache", "the newest in --cache-dir that matches")
    cache.add_argument(
        "--cache",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="this file; several: features side by side",
    )
    cache.add_argument("--dataset", help="of this data set")
    cache.add_argument("--backbone", help="of this backbone")
    cache.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="embedded in this precision")
    cache.add_argument("--pool", action="store_true", help="take maps, too, and average each over its positions")
    cache.add_argument("--views", choices=("all", "plain"), default="all", help="augmented views of a cache (all)")
    add_subset_flags(parser)
    add_exclude_flag(parser)
    work = parser.add_argument_group("workers", "for several seeds, classifiers, sizes or caches")
    work.add_argument("--jobs", type=int, default=1, metavar="N", help="so many at once, each with one thread (1)")
    work.add_argument(
        "--backend", choices=("loky", "threading", "dask", "ray"), default="loky",
        help="joblib's: processes here, threads, or a cluster that sees the same files (loky)",
    )  # fmt: skip
    work.add_argument("--scheduler", metavar="ADDRESS", help="of --backend dask: tcp://host:port")
    parser.add_argument("--name", help="of the run (data set, backbone, classifier and a number)")
    return parser


def check_flags(arguments: argparse.Namespace) -> None:
    """Refuse flags that make no sense, or none together. Raises UsageError."""
    if not 0 < arguments.val_fraction < 1:
        raise UsageError(f"--val-fraction {arguments.val_fraction:g}: expected a number between 0 and 1")
    if arguments.seeds < 1:
        raise UsageError(f"--seeds {arguments.seeds}: expected a whole number of at least 1")
    curve = next((flag for flag in ("fractions", "shots") if getattr(arguments, flag)), "")
    mode = "--rank" if arguments.rank else f"--{curve}" if curve else ""
    if arguments.fractions and arguments.shots:
        raise UsageError("--fractions and --shots exclude one another: give one of them")
    excluded = {"": (), "--rank": ("fractions", "shots", "seeds", "name")}.get(mode, ())
    for flag in (*excluded, *(("against", "report", "nested", "calibrate") if mode else ())):
        if getattr(arguments, flag) and (flag != "seeds" or arguments.seeds > 1):
            raise UsageError(f"{mode} makes no run that --{flag} could be of: leave one of them out")
    if mode and len(arguments.clf or ()) > 1:
        raise UsageError(f"{mode} takes one classifier, --clf names {len(arguments.clf)}: give one of them")
    if arguments.name is not None and len(arguments.clf or ()) > 1:
        raise UsageError("--name names one run, and --clf makes several: leave it out")
    if arguments.name is not None:
        from heads.runs import check_run_name

        for seed in range(arguments.seeds):
            check_run_name(arguments.runs_dir, run_name(arguments, arguments.seed + seed))


def run_name(arguments: argparse.Namespace, seed: int) -> str:
    """What ``--name`` calls the run of a seed."""
    single = arguments.seeds == 1 or arguments.fractions or arguments.shots
    return str(arguments.name if single else f"{arguments.name}-s{seed}")


def recipes_of(arguments: argparse.Namespace, *, default: str = "logreg") -> list[Recipe]:
    """Each classifier with each seed."""
    from heads.recipe import Recipe

    return [
        Recipe(
            clf=clf,
            cv=arguments.cv,
            nested=arguments.nested,
            rule=arguments.rule,
            select_by=arguments.select_by,
            class_weight=None if arguments.class_weight == "none" else arguments.class_weight,
            refit=not arguments.no_refit,
            calibrate=arguments.calibrate,
            val_fraction=arguments.val_fraction,
            seed=seed,
            device=_device(clf, arguments.device),
        )
        for clf in arguments.clf or (default,)
        for seed in range(arguments.seed, arguments.seed + arguments.seeds)
    ]


def workers_of(arguments: argparse.Namespace) -> Workers:
    """Who does the work."""
    from heads.sweep import Workers

    return Workers(jobs=arguments.jobs, backend=arguments.backend, scheduler=arguments.scheduler)


def source_of(arguments: argparse.Namespace, *caches: Cache, pool: bool | None = None) -> Source:
    """The rows that the flags choose from these caches."""
    from heads.source import Source

    return Source(
        paths=tuple(cache.path.resolve() for cache in caches),
        fingerprints=tuple(cache.fingerprint for cache in caches),
        subset=subset_of(arguments),
        exclude=exclusion_of(arguments),
        val_fraction=arguments.val_fraction,
        seed=arguments.seed,
        pool_maps=arguments.pool if pool is None else pool,
        views=arguments.views,
    )


def caches_of(arguments: argparse.Namespace, console: Console) -> list[Cache]:
    """The caches that were named, or the newest that matches. Raises CacheError where there is none."""
    from featcache.cache.cache_file import Cache, find_caches

    wanted = {**asked_dataset(arguments.dataset), "backbone": arguments.backbone, "precision": arguments.precision}
    if arguments.cache:
        named = [Cache.open(path) for path in arguments.cache]
        for cache in named:
            cache.require(**wanted)
        return named
    refusals: list[CacheError] = []
    found = find_caches(arguments.cache_dir, on_refusal=refusals.append)
    caches = [cache for cache in found if not cache.is_byproduct]
    for cache in caches:
        matches = all(value in (None, cache.told()[key]) for key, value in wanted.items())
        if matches and (cache.holds_vectors or arguments.pool):
            tell_passed_over(console, refusals, cache)
            return [cache]
    flags = {"dataset": arguments.dataset, "backbone": arguments.backbone, "precision": arguments.precision}
    asked = " ".join(f"--{key} {value}" for key, value in flags.items() if value)
    raise CacheError(
        f"{arguments.cache_dir}: no cache{'' if arguments.pool else ' of vectors'}{' for ' + asked if asked else ''} "
        f"(found {found_instead(caches, refusals)}); make one with bin/embed{' ' + asked if asked else ''}"
    )


def tell_passed_over(console: Console, refusals: Sequence[CacheError], taken: Cache) -> None:
    """Name the files that can't be opened, the newest first: one of them may be the cache that was meant."""
    for error in sorted(refusals, key=_written, reverse=True)[:_FEW]:
        older = ", which is older" if _written(error) > taken.path.stat().st_mtime else ""
        console.note(f"PASSED OVER {error} (took {taken.path.name}{older})")
    if len(refusals) > _FEW:
        console.note(f"PASSED OVER {len(refusals) - _FEW} more files: bin/cache ls names them")


def found_instead(caches: Sequence[Cache], refusals: Sequence[CacheError]) -> str:
    """What a folder holds instead of the cache that is looked for, and why files in it can't be opened."""
    names = ", ".join(cache.path.name for cache in caches[:_FEW])
    unreadable = map(str, sorted(refusals, key=_written, reverse=True)[:_FEW])
    return "; ".join(part for part in (names, *unreadable) if part) or "none at all"


def _written(error: CacheError) -> float:
    """When the file of an error was written; 0 if it is gone."""
    with suppress(OSError):
        return error.path.lstat().st_mtime if error.path else 0.0
    return 0.0


def asked_dataset(asked: str | None) -> dict[str, str]:
    """What ``--dataset`` asks of a cache: a folder by its path, all else by its name."""
    if asked is None:
        return {}
    if "/" in asked or Path(asked).is_dir():
        return {"folder": str(Path(asked).resolve())}
    return {"dataset": asked}


def tell_rows(console: Console, source: Source) -> None:
    """Which caches were taken and which rows."""
    rows, caches = source.rows(), source.caches()
    for cache in caches:
        what = f"{cache.encoder['backbone']} ({cache.provenance['weights']})"
        n_features = f", {rows.dev.features.shape[1]} features" if len(caches) == 1 else ""
        console.note(f"cache {_short(cache.path)}: {cache.dataset}, {what}{n_features}")
    if len(caches) > 1:
        console.note(f"{rows.dev.features.shape[1]} features side by side")
    console.note(f"rows: {len(rows.train):,} train, {len(rows.val):,} val, {len(rows.test):,} test")
    for note in rows.notes:
        console.note(f"  {note}")


def _short(path: Path) -> Path:
    """A path below the working folder as seen from there."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _classifiers(text: str) -> tuple[str, ...]:
    asked = tuple(CLASSIFIERS) if text == "all" else names(text)
    for name in asked:
        if name not in CLASSIFIERS:
            known = ", ".join((*CLASSIFIERS, "all"))
            raise argparse.ArgumentTypeError(f"invalid choice: {name!r} (choose from {known})")
    if not asked or len(set(asked)) < len(asked):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of different classifiers")
    return asked


def _folds(text: str) -> int | Literal["loo"]:
    if text == "loo":
        return "loo"
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of folds nor loo") from error


def _whole_numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in names(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 1,2,5,10") from error


def _device(clf: str, wanted: str) -> str:
    """Where a classifier runs; torch is asked for those that it trains, and for a device that is asked for."""
    if wanted == "cpu" or (wanted == "auto" and clf not in ("linear", "mlp")):
        return wanted
    from featcache.common.machine import choose_device

    return str(choose_device(wanted))
