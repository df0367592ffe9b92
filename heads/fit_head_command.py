"""``bin/fit-head``: a cache and a classifier's name in; a scored run out."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.command_line import Console, Parser, add_subset_flags, new_parser, run, subset_of
from featcache.errors import CacheError, UsageError
from heads.classifiers import CLASSIFIERS

if TYPE_CHECKING:
    from featcache.cache import Cache
    from heads.head_run import HeadRun
    from heads.rows import Rows

DESCRIPTION = """Fit a classifier head on cached features. Hyper-parameters are chosen on validation rows, the head is
fitted
again on train and validation, and the test rows are scored once."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    command = shlex.join(["fit-head", *(sys.argv[1:] if argv is None else argv)])
    return run(
        _parser(),
        lambda arguments, console: _fit(arguments, console, command),
        argv,
        on_interrupt="finished runs are kept: run the command again for the rest",
    )


def _parser() -> Parser:
    parser = new_parser("fit-head", DESCRIPTION)
    head = parser.add_argument_group("head")
    head.add_argument(
        "--clf", choices=(*CLASSIFIERS, "all"), default="logreg", help="the classifier (logreg); all fits each"
    )
    head.add_argument("--val-fraction", type=float, default=0.1, metavar="F", help="of train, to choose on (0.1)")
    head.add_argument("--no-refit", action="store_true", help="keep the head that was fitted without validation rows")
    head.add_argument("--device", default="auto", help="auto, cuda, mps or cpu, for linear and mlp (auto)")
    head.add_argument("--report", action="store_true", help="show classes one by one and the confusion matrix")
    cache = parser.add_argument_group("cache", "the newest in --cache-dir that matches")
    cache.add_argument("--cache", type=Path, metavar="FILE", help="this cache file")
    cache.add_argument("--dataset", help="of this data set")
    cache.add_argument("--backbone", help="of this backbone")
    cache.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="embedded in this precision")
    add_subset_flags(parser)
    parser.add_argument("--name", help="of the run (data set, backbone, classifier and a number)")
    return parser


def _fit(arguments: argparse.Namespace, console: Console, command: str) -> dict[str, Any]:
    from heads.head_run import fit_head, head_meta, run_record
    from heads.rows import load_rows
    from heads.runs import check_run_name, new_run_name, write_run

    if not 0 < arguments.val_fraction < 1:
        raise UsageError(f"--val-fraction {arguments.val_fraction:g}: expected a number between 0 and 1")
    if arguments.name is not None:
        if arguments.clf == "all":
            raise UsageError("--name names one run, and --clf all makes several: leave it out")
        check_run_name(arguments.runs_dir, arguments.name)
    subset = subset_of(arguments)
    cache = _find_cache(arguments)
    rows = load_rows(cache, subset=subset, val_fraction=arguments.val_fraction, seed=arguments.seed)
    console.note(
        f"cache {cache.path}: {cache.dataset}, {cache.encoder['backbone']} ({cache.provenance['weights']}), "
        f"{rows.train.features.shape[1]} features"
    )
    console.note(f"rows: {len(rows.train):,} train, {len(rows.val):,} val, {len(rows.test):,} test")
    for note in rows.notes:
        console.note(f"  {note}")
    records = []
    for clf in CLASSIFIERS if arguments.clf == "all" else (arguments.clf,):
        device = _device(clf, arguments.device)
        fitted = fit_head(
            rows, clf, seed=arguments.seed, refit=not arguments.no_refit, device=device, report=console.candidate(clf)
        )
        record = run_record(cache, rows, clf, fitted, command=command, seed=arguments.seed, device=device)
        stem = f"{cache.dataset}-{cache.encoder['backbone']}-{clf}"
        folder = arguments.runs_dir / (arguments.name or new_run_name(arguments.runs_dir, stem))
        write_run(folder, record=record, predictions=fitted.predictions, head=fitted.head, head_meta=head_meta(record))
        records.append(record)
        _tell(console, record, fitted.selection.notes, folder)
        if arguments.report:
            _report(console, rows, fitted, folder)
    _table(console, records)
    return records[0] if arguments.clf != "all" else {"runs": records}


def _find_cache(arguments: argparse.Namespace) -> Cache:
    from featcache.cache import Cache, find_caches

    wanted = {
        **_asked_dataset(arguments.dataset),
        "backbone": arguments.backbone,
        "precision": arguments.precision,
    }
    if arguments.cache:
        cache = Cache.open(arguments.cache)
        cache.require(**wanted)
        return cache
    caches = find_caches(arguments.cache_dir)
    for cache in caches:
        matches = all(value in (None, cache.told()[key]) for key, value in wanted.items())
        if matches and cache.holds_vectors:
            return cache
    flags = {"dataset": arguments.dataset, "backbone": arguments.backbone, "precision": arguments.precision}
    asked = " ".join(f"--{key} {value}" for key, value in flags.items() if value)
    there = ", ".join(cache.path.name for cache in caches[:3]) or "none at all"
    raise CacheError(
        f"{arguments.cache_dir}: no cache of vectors{' for ' + asked if asked else ''} (found {there}); "
        f"make one with bin/embed{' ' + asked if asked else ''}"
    )


def _asked_dataset(asked: str | None) -> dict[str, str]:
    """What ``--dataset`` asks of a cache: a folder by its path, all else by its name."""
    if asked is None:
        return {}
    if "/" in asked or Path(asked).is_dir():
        return {"folder": str(Path(asked).resolve())}
    return {"dataset": asked}


def _device(clf: str, wanted: str) -> str:
    """Where a classifier runs; torch is asked only for those that it trains."""
    if clf not in ("linear", "mlp"):
        return "cpu"
    from featcache.machine import choose_device

    return str(choose_device(wanted))


def _tell(console: Console, record: dict[str, Any], notes: Sequence[str], folder: Path) -> None:
    chosen = ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in record["params"].items())
    console.note(f"{record['method']}: {chosen or 'nothing to choose'}; {record['cost']['fit_s']:.1f} s; run {folder}")
    for note in notes:
        loud = "WARNING: " if note.startswith(("did not converge", "at the edge")) else ""
        console.note(f"  {loud}{note}")


def _table(console: Console, records: Sequence[dict[str, Any]]) -> None:
    columns = (
        "head",
        "accuracy",
        "95 % interval",
        "top 5",
        "balanced",
        "macro F1",
        "log loss",
        "ECE",
        "val acc.",
        "fit s",
    )
    lines = []
    for record in records:
        test, val = record["metrics"]["test"], record["metrics"]["val"]
        low, high = test["accuracy_ci95"]
        scores = [test[key] for key in ("top5", "balanced_accuracy", "macro_f1", "log_loss", "ece")]
        cells = ["–" if score is None else f"{score:.4f}" for score in scores]
        fit_s = f"{record['cost']['fit_s']:.1f}"
        lines.append(
            (
                record["method"],
                f"{test['accuracy']:.4f}",
                f"{low:.4f}–{high:.4f}",
                *cells,
                f"{val['accuracy']:.4f}",
                fit_s,
            )
        )
    name = f"{records[0]['dataset']['name']}, {records[0]['encoder']['backbone']}"
    console.table(f"{name}: test metrics on {records[0]['dataset']['n_test']:,} rows", columns, lines)


def _report(console: Console, rows: Rows, fitted: HeadRun, folder: Path) -> None:
    from heads.metrics import confusion, per_class

    predicted = fitted.predictions["test_scores"].argmax(axis=1)
    matrix = confusion(rows.test.labels, predicted, len(rows.class_names))
    each = per_class(rows.test.labels, predicted, len(rows.class_names))
    lines = [
        (name, *(f"{share[label]:.4f}" for share in (each.precision, each.recall, each.f1)), f"{each.support[label]:,}")
        for label, name in enumerate(rows.class_names)
    ]
    console.table("test, by class", ("class", "precision", "recall", "F1", "rows"), lines)
    numbers = [(name, *map(str, line)) for name, line in zip(rows.class_names, matrix.tolist(), strict=True)]
    console.table("confusion matrix: rows are true classes, columns predicted ones", ("", *rows.class_names), numbers)
    try:
        from heads.plots import draw_confusion
    except ModuleNotFoundError:
        console.note("  no picture of it: pip install 'featcache[plots]'")
    else:
        console.note(f"  drawn in {draw_confusion(matrix, rows.class_names, folder / 'confusion.png')}")
