"""``bin/audit``: a cache in; what may be wrong with its data set, as a table, a page and ``findings.csv``, out."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.commands.console import Console, Parser, new_parser, run
from featcache.common.disk import other_name_note, publish_folder
from featcache.common.errors import UsageError, UserError

if TYPE_CHECKING:
    from featcache.cache.cache_file import Cache
    from heads.audit.audit import Audit

DESCRIPTION = """Find what may be wrong with the data set of a cache: duplicates and near duplicates, within and across
splits, the same image under two labels, likely wrong labels, outliers, classes that are nearly one or have few rows,
and damaged images. Nothing is changed; bin/fit-head and bin/finetune take the list with --exclude."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    command = shlex.join(["audit", *(sys.argv[1:] if argv is None else argv)])
    return run(
        _parser(),
        lambda arguments, console: _audit(arguments, console, command),
        argv,
        on_interrupt="nothing was written: run the command again",
    )


def _parser() -> Parser:
    parser = new_parser("audit", DESCRIPTION)
    cache = parser.add_argument_group("cache", "the newest in --cache-dir that matches")
    cache.add_argument("file", nargs="?", type=Path, metavar="CACHE", help="this file, or its name in --cache-dir")
    cache.add_argument("--dataset", help="of this data set")
    cache.add_argument("--backbone", help="of this backbone")
    cache.add_argument("--precision", choices=("fp32", "bf16", "fp16", "int8"), help="embedded in this precision")
    written = parser.add_argument_group("what is written")
    written.add_argument("--audits-dir", type=Path, default=Path("audits"), help="folder of the audits (audits)")
    written.add_argument("--name", help="of the audit (data set, backbone and a number)")
    written.add_argument("--top", type=int, default=60, metavar="N", help="findings of each kind on the page (60)")
    return parser


def _audit(arguments: argparse.Namespace, console: Console, command: str) -> dict[str, Any]:
    if arguments.top < 0:
        raise UsageError(f"--top {arguments.top}: expected a whole number from 0 on")
    from heads.runs import check_run_name, created_now, new_run_name

    if arguments.name is not None:
        check_run_name(arguments.audits_dir, arguments.name)
    cache = _cache(arguments, console)
    encoder = cache.encoder["backbone"]
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in cache.splits.items())
    console.note(f"cache {cache.path}: {cache.dataset}, {encoder} ({cache.provenance['weights']}), rows: {sizes}")

    from heads.audit.audit import audit
    from heads.audit.findings import write_findings

    found = audit(cache, seed=arguments.seed, tell=console.note)
    told: dict[str, Any] = {
        "schema": 1,
        "command": command,
        "created": created_now(),
        "dataset": cache.dataset,
        "cache": {"file": cache.path.name, "fingerprint": cache.fingerprint},
        "encoder_fingerprint": cache.encoder_fingerprint,
        "rows": {name: len(split) for name, split in cache.splits.items()},
        "findings": found.counts(),
        "numbers": found.numbers,
        "notes": list(found.notes),
    }
    page, no_page = _page(found, cache, sizes, arguments.top, told["created"])

    def write(temporary: Path) -> None:
        (temporary / "audit.json").write_text(json.dumps(told, indent=1, allow_nan=False) + "\n")
        write_findings(temporary / "findings.csv", found.findings)
        if page is not None:
            (temporary / "audit.html").write_text(page, encoding="utf-8")

    name = arguments.name or new_run_name(arguments.audits_dir, f"{cache.dataset}-{encoder}")
    folder = publish_folder(arguments.audits_dir / name, write, numbered=arguments.name is None)
    if arguments.name is not None and folder.name != name:
        console.note(other_name_note(arguments.audits_dir / name, folder))
    _tell(console, found, cache.dataset)
    if no_page:
        console.note(f"  no page: {no_page}")
    console.note(f"audit {folder}: findings.csv{', audit.html' if page is not None else ''}")
    if any(finding.exclude for finding in found.findings):
        console.note(
            f"bin/fit-head --exclude {folder / 'findings.csv'} leaves out the rows that say yes in its column exclude"
        )
    return {**told, "folder": str(folder)}


def _cache(arguments: argparse.Namespace, console: Console) -> Cache:
    """The cache that was named, or the newest that bin/fit-head would take."""
    from heads.asked_command import caches_of

    named, inside = arguments.file, None
    if named is not None:
        inside = arguments.cache_dir / named
        inside = inside if len(named.parts) == 1 and not named.exists() and inside.exists() else named
    asked = argparse.Namespace(
        cache=[] if inside is None else [inside],
        cache_dir=arguments.cache_dir,
        dataset=arguments.dataset,
        backbone=arguments.backbone,
        precision=arguments.precision,
        pool=False,
    )
    return caches_of(asked, console)[0]


def _page(found: Audit, cache: Cache, sizes: str, top: int, created: str) -> tuple[str | None, str]:
    """The page, or None and why there is none."""
    from heads.audit.page import audit_page

    facts = [
        ("data set", cache.dataset),
        ("rows", sizes),
        ("features", f"{cache.encoder['backbone']} ({cache.provenance['weights']}), {cache.path.name}"),
        ("created", created),
    ]
    if labels := found.numbers.get("labels"):
        facts.append(
            ("out-of-fold accuracy", f"{labels['out_of_fold_accuracy']:.4f}, logistic, {labels['folds']} folds")
        )
    try:
        return audit_page(found, title=f"Audit of {cache.dataset}", facts=facts, top=top), ""
    except UserError as error:
        return None, str(error)


def _tell(console: Console, found: Audit, dataset: str) -> None:
    from heads.audit.findings import KINDS

    lines = [
        (KINDS[kind], *(f"{counts[key]:,}" for key in ("all", "test_leaks", "excluded")))
        for kind, counts in found.counts().items()
        if counts["all"]
    ]
    for note in found.notes:
        console.note(f"  {note}")
    if not lines:
        console.note("nothing was found")
        return
    columns = ("kind", "found", "between train and test", "marked to go")
    console.table(f"{dataset}: what was found in {len(found.rows):,} rows", columns, lines)
