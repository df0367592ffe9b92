"""``bin/export``: a finished run in; one file for ONNX Runtime, torch.export or safetensors, checked, out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.commands.console import Console, Parser, new_parser, run
from featcache.common.disk import other_name_note

if TYPE_CHECKING:
    from heads.serving.exporting import Exported
    from heads.serving.loaded_run import LoadedRun

# as in heads.serving.exporting, which needs torch
_ENDINGS = {".onnx": "onnx", ".pt2": "torch", ".safetensors": "safetensors"}
_FORMATS = {name: ending for ending, name in _ENDINGS.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run(_parser(), _export, argv, on_interrupt="nothing was written: run the command again")


def _parser() -> Parser:
    parser = new_parser(
        "export", "Write a run of bin/fit-head or bin/finetune to one file: backbone, head, softmax, class names."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or its name in --runs-dir")
    parser.add_argument("--format", choices=list(_FORMATS), help="what to write (as --out ends; onnx)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file (RUN's name, with the format's ending)")
    parser.add_argument(
        "--with-preprocessing", action="store_true", help="resize and crop in the graph: uint8 images of any size in"
    )
    parser.add_argument(
        "--check",
        nargs="+",
        default=[],
        metavar="PATH",
        help="compare the file with its run on these images too: files, folders, or - for a list on stdin",
    )
    parser.add_argument("--weights", metavar="FILE", help="of the backbone, where they came from a file")
    parser.add_argument("--force", action="store_true", help="replace a file of that name")
    return parser


def _export(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    from heads.comparing import find_run
    from heads.serving.exporting import check_request, export_run
    from heads.serving.inputs import inputs_of

    folder = find_run(arguments.run, arguments.runs_dir)
    file_format = arguments.format or _ENDINGS.get(arguments.out.suffix if arguments.out else "", "onnx")
    path = arguments.out or Path(folder.resolve().name + _FORMATS[file_format])
    settings: dict[str, Any] = {
        "file_format": file_format,
        "with_preprocessing": arguments.with_preprocessing,
        "force": arguments.force,
    }
    check_request(path, **settings)
    with ExitStack() as held:
        check = held.enter_context(inputs_of(arguments.check, sys.stdin.buffer)) if arguments.check else None
        if check is not None:
            check.counted()  # refuses what holds no images
        exported = export_run(_loaded(folder, arguments, console), path, check=check, **settings)
    _tell(console, exported)
    if exported.path != path:
        console.note(other_name_note(path, exported.path))
    return {
        "file": str(exported.path),
        "format": file_format,
        "bytes": exported.n_bytes,
        "description": exported.description,
        "parity": [asdict(each) for each in exported.parity],
    }


def _loaded(folder: Path, arguments: argparse.Namespace, console: Console) -> LoadedRun:
    """The run with its canary compared, told of."""
    import torch

    from heads.serving.drift import refuse_drift
    from heads.serving.loaded_run import load_run

    loaded = load_run(folder, device=torch.device("cpu"), weights=arguments.weights)
    backbone = loaded.record["encoder"]["backbone"]
    console.note(f"run {folder}: {loaded.record['method']} on {backbone}, {len(loaded.class_names)} classes")
    console.note(f"  {refuse_drift(loaded, cache_dir=arguments.cache_dir)}")
    if loaded.all_views:
        console.note("  its head was tested on the average over augmented views; the file takes the plain image alone")
    if not loaded.probabilistic:
        console.note(f"  {loaded.record['method']} has scores, no probabilities, and so has the file")
    return loaded


def _tell(console: Console, exported: Exported) -> None:
    told = exported.description
    takes, gives = told["input"], told["outputs"]
    shape = " x ".join(map(str, takes["shape"]))
    console.note(f"  takes {takes['name']}: {shape} {takes['dtype']}, {takes['values']}; gives {', '.join(gives)}")
    rows = [
        (each.images, f"{each.n_images:,}", each.compared, f"{each.largest:.1e}", f"{each.tolerance:g}",
         f"{each.other_labels:,}")
        for each in exported.parity
    ]  # fmt: skip
    columns = ("images", "number", "compared", "largest difference", "accepted", "other labels")
    console.table("the file beside the run", columns, rows)
    console.note(f"{exported.path}: {exported.n_bytes:,} bytes")
