"""``bin/cache``: list, describe, verify, compare, export, delete and resume the caches of a folder."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.commands.console import Console, Parser, new_parser, run
from featcache.common.disk import other_name_note
from featcache.common.errors import CacheError, UsageError, UserError

if TYPE_CHECKING:
    from featcache.cache.cache_file import Cache
    from featcache.cache.canary import Canary

DESCRIPTION = "Look after the caches in --cache-dir."


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run(_parser(), _dispatch, argv, on_interrupt="what is done is kept: run the same command to go on")


def _parser() -> Parser:
    parser = Parser(prog="cache", description=DESCRIPTION, allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    common = new_parser("cache", DESCRIPTION)

    def add(name: str, action: Callable[[argparse.Namespace, Console], dict[str, Any]], help_text: str) -> Parser:
        added: Parser = actions.add_parser(
            name,
            help=help_text,
            description=help_text,
            parents=[common],
            conflict_handler="resolve",  # --help comes twice
            allow_abbrev=False,
        )
        added.set_defaults(run=action)
        return added

    add("ls", _ls, "list all caches, finished, in the making and unreadable, newest first")
    info = add("info", _info, "tell all that a cache says of itself")
    verify = add("verify", _verify, "read every block, and compare today's features of a few pictures with the cache's")
    diff = add("diff", _diff, "tell how two caches differ: encoder, rows, features")
    gc = add("gc", _gc, "name the files that serve nothing any more; --delete deletes them")
    export = add("export", _export, "write a cache as plain files: .npy, .csv or .parquet, .json")
    resume = add("resume", _resume, "go on with the files in the making, by the bin/embed that each records")
    for added, name in ((info, "file"), (export, "file"), (diff, "a"), (diff, "b")):
        added.add_argument(name, type=Path, metavar=name.upper(), help="a cache, or its name in --cache-dir")
    verify.add_argument("files", nargs="*", type=Path, metavar="FILE", help="all in --cache-dir unless named")
    verify.add_argument("--no-canary", action="store_true", help="read the blocks only")
    verify.add_argument("--weights", metavar="FILE", help="the backbone's weights, where they came from a file")
    verify.add_argument("--device", default="auto", help="auto, cuda, mps or cpu, for the pictures (auto)")
    gc.add_argument("--delete", action="store_true", help="delete them; without it they are only named")
    gc.add_argument(
        "--older-than", type=float, default=7.0, metavar="DAYS", help="what counts as given up in the making (7)"
    )
    gc.add_argument("--damaged", action="store_true", help="caches, too, that are damaged or of an older format")
    gc.add_argument(
        "--superseded", action="store_true", help="caches, too, whose images another one of the encoder has"
    )
    export.add_argument("out", type=Path, metavar="OUT", help="a folder that is not there yet, or is empty")
    export.add_argument("--format", choices=("csv", "parquet"), default="csv", help="of the tables (csv)")
    resume.add_argument("file", nargs="?", type=Path, metavar="FILE", help="this one (all of this host)")
    return parser


def _dispatch(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    action: Callable[[argparse.Namespace, Console], dict[str, Any]] = arguments.run
    return action(arguments, console)


def _path(arguments: argparse.Namespace, given: Path) -> Path:
    """A file as given, or of that name in the folder of the caches."""
    inside = arguments.cache_dir / given
    return inside if len(given.parts) == 1 and not given.exists() and inside.exists() else given


def _open(arguments: argparse.Namespace, given: Path) -> Cache:
    from featcache.cache.cache_file import Cache

    return Cache.open(_path(arguments, given))


def _ls(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    from featcache.commands.cache_report import tell_inventory
    from featcache.maintenance.inventory import inventory

    entries = inventory(arguments.cache_dir)
    tell_inventory(console, arguments.cache_dir, entries)
    return {"folder": str(arguments.cache_dir), "caches": [{**vars(each), "path": str(each.path)} for each in entries]}


def _info(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    from featcache.commands.cache_report import tell_description
    from featcache.maintenance.description import describe
    from featcache.maintenance.inventory import open_any

    told = describe(open_any(_path(arguments, arguments.file)))
    tell_description(console, told)
    return told


def _diff(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    from featcache.commands.cache_report import tell_differences
    from featcache.maintenance.differences import compare_caches

    a, b = (_open(arguments, given) for given in (arguments.a, arguments.b))
    found = compare_caches(a, b)
    tell_differences(console, a.path, b.path, found)
    return {"a": str(a.path), "b": str(b.path), **found.to_json()}


def _verify(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    from featcache.maintenance.inventory import cache_paths

    paths = [_path(arguments, given) for given in arguments.files] or cache_paths(arguments.cache_dir)
    if not paths:
        raise CacheError(f"{arguments.cache_dir}: no caches to verify; bin/embed makes one")
    check_canary = None if arguments.no_canary else _CanaryCheck(console, arguments.weights, arguments.device)
    told = [_verify_one(console, path, check_canary) for path in paths]
    bad = [each for each in told if each["damages"] or each["drifted"]]
    if bad:
        console.result({"verified": told})
        first = bad[0]["damages"][0] if bad[0]["damages"] else bad[0]["canary"]
        raise CacheError(
            f"{len(bad)} of {len(told)} caches are damaged or have drifted: {bad[0]['file']}: {first} "
            "(bin/cache gc --damaged names what can be deleted)"
        )
    return {"verified": told}


def _verify_one(console: Console, path: Path, check_canary: _CanaryCheck | None) -> dict[str, Any]:
    from featcache.cache.cache_file import Cache
    from featcache.maintenance.verification import verify

    told: dict[str, Any] = {"file": str(path), "damages": [], "drifted": False, "canary": None}
    try:
        cache = Cache.open(path)
        with console.progress("verifying", "MB") as progress:
            verified = verify(cache, on_progress=lambda done, total: progress(done // 10**6, total // 10**6))
    except CacheError as error:
        console.note(f"{path}: {'NOT READ' if error.may_be_sound else 'DAMAGED'}: {error.reason}")
        return {**told, "damages": [error.reason]}
    gb_per_s = verified.n_bytes / 1e9 / max(verified.seconds, 1e-9)
    console.note(f"{path}: read {verified.n_bytes:,} bytes in {verified.seconds:.2f} s ({gb_per_s:.2f} GB/s)")
    for damage in verified.damages:
        console.note(f"  DAMAGED: {damage}")
    told |= {"damages": list(verified.damages), "bytes": verified.n_bytes, "seconds": round(verified.seconds, 3)}
    told["gb_per_s"] = round(gb_per_s, 3)
    if not verified.damages:
        console.note("  every block matches its checksum")
    return told | check_canary(cache) if check_canary else told


class _CanaryCheck:
    """Compares canaries; what today's stack makes of the pictures is found once for each encoder and batch."""

    def __init__(self, console: Console, weights: str | None, device: str) -> None:
        from featcache.common.machine import choose_device

        self.console = console
        self.weights = weights
        self.device = choose_device(device)
        self._now: dict[tuple[str, str, int], Canary | UserError] = {}

    def __call__(self, cache: Cache) -> dict[str, Any]:
        from featcache.cache.canary import compare, stored_canary

        now = self._today(cache)
        if isinstance(now, UserError):
            self.console.note(f"  CANARY NOT CHECKED: {now}")
            return {"canary": f"not checked: {now}"}
        drift = compare(stored_canary(cache), now, precision=cache.encoder["precision"])
        self.console.note(f"  {'DRIFTED' if drift.is_drift else 'canary agrees'}: {drift}")
        return {"canary": str(drift), "drifted": drift.is_drift}

    def _today(self, cache: Cache) -> Canary | UserError:
        from featcache.maintenance.verification import todays_canary

        key = (cache.encoder_fingerprint, cache.provenance["weights"], cache.provenance["batch"])
        if key not in self._now:
            try:
                self._now[key] = todays_canary(cache, weights=self.weights, device=self.device)
            except UserError as error:
                self._now[key] = error
        return self._now[key]


def _gc(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    from featcache.commands.cache_report import size
    from featcache.maintenance.garbage import delete, find_garbage

    if not 0 <= arguments.older_than < float("inf"):
        raise UsageError(f"--older-than {arguments.older_than:g}: expected a number of days from 0 on")
    unjudged: list[CacheError] = []
    found = find_garbage(
        arguments.cache_dir,
        older_than=arguments.older_than,
        damaged=arguments.damaged,
        superseded=arguments.superseded,
        on_unjudged=unjudged.append,
    )
    for error in unjudged:
        console.note(f"left alone {error}")
    told = []
    for each in found:
        kept = delete(each) if arguments.delete else "dry run"
        verb = "deleted" if not kept else "would delete" if not arguments.delete else f"kept, {kept}:"
        console.note(f"{verb} {each.path} ({size(each.n_bytes)}): {each.reason}")
        told.append({"file": str(each.path), "reason": each.reason, "bytes": each.n_bytes, "deleted": not kept})
    if not found:
        console.note(f"{arguments.cache_dir}: nothing to delete")
    elif not arguments.delete:
        console.note(f"{size(sum(each.n_bytes for each in found))} in all; --delete deletes them")
    left = [{"file": str(error.path), "reason": error.reason, "kind": error.kind} for error in unjudged]
    return {"folder": str(arguments.cache_dir), "garbage": told, "left_alone": left}


def _export(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    from featcache.maintenance.export import export

    cache = _open(arguments, arguments.file)
    with console.progress("exporting", "rows") as progress:
        exported = export(cache, arguments.out, table=arguments.format, on_progress=progress)
    console.note(
        f"{exported.folder}: {exported.rows:,} rows, {exported.n_bytes:,} bytes in {', '.join(exported.files)}"
    )
    if exported.folder != arguments.out.resolve():
        console.note(other_name_note(arguments.out, exported.folder))
    return {**vars(exported), "folder": str(exported.folder), "files": list(exported.files)}


def _resume(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    from featcache.commands.resume import resume

    file = None if arguments.file is None else _path(arguments, arguments.file)
    return resume(file, arguments.cache_dir, console)
