"""``bin/predict``: a run and images in; their classes, as a table, CSV or JSON lines, out."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.commands.console import Console, Parser, new_parser, numbers, run
from featcache.common.errors import UsageError, UserError
from heads.serving.predictions import FORMATS

if TYPE_CHECKING:
    from heads.serving.inputs import Inputs
    from heads.serving.labelling import Labelled
    from heads.serving.loaded_run import LoadedRun
    from heads.serving.predicting import Predicting

DESCRIPTION = """Say what images show, by a run of bin/fit-head or bin/finetune, which knows its backbone, weights and
preprocessing. With --out an interrupted prediction goes on where it was when the same command is given again."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run(
        predict_parser(),
        predict,
        argv,
        on_interrupt="with --out what is done is kept: run the same command to go on",
        stdout_is_data=True,
    )


def predict_parser() -> Parser:
    """The flags of ``bin/predict``."""
    parser = new_parser("predict", DESCRIPTION)
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run, or its name in --runs-dir")
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="an image, a folder of images, or - for a list of paths on stdin"
    )
    told = parser.add_argument_group("what is told")
    told.add_argument("--top", type=_whole, default=1, metavar="K", help="the K likeliest classes of each image (1)")
    told.add_argument(
        "--abstain", type=float, metavar="P", help="leave the class open where its probability is below P"
    )
    told.add_argument(
        "--neighbors", type=_whole, default=0, metavar="K", help="the ids of the K nearest training images, by cosine"
    )
    told.add_argument("--strict", action="store_true", help="fail at the first damaged image instead of going on")
    out = parser.add_argument_group("where to")
    out.add_argument("--format", choices=FORMATS, help="by --out's ending; else a table on a terminal, and csv")
    out.add_argument("--out", type=Path, metavar="FILE", help="a .csv or .jsonl file, written whole or gone on with")
    out.add_argument("--restart", action="store_true", help="begin --out anew, over what is there")
    model = parser.add_argument_group("backbone, which the run knows: another one is refused")
    model.add_argument("--weights", metavar="FILE", help="where the backbone's weights came from a file: that file")
    model.add_argument("--backbone", help="to be sure which it is")
    model.add_argument("--image-size", type=int, metavar="PIXELS", help="likewise")
    model.add_argument("--resize", choices=("crop", "squash"), help="likewise")
    model.add_argument("--mean", type=numbers, metavar="R,G,B", help="likewise")
    model.add_argument("--std", type=numbers, metavar="R,G,B", help="likewise")
    work = parser.add_argument_group("work")
    work.add_argument("--device", default="auto", help="auto, cuda, mps or cpu (auto)")
    work.add_argument(
        "--engine", choices=("eager", "compile", "openvino"), help="another than the features were made by (the run's)"
    )
    work.add_argument(
        "--batch-size", type=_whole, metavar="N", help="images a forward pass (16 on a CPU, 256 on a GPU)"
    )
    work.add_argument("--workers", type=int, metavar="N", help="threads that read and decode (one a core, up to 16)")
    return parser


def predict(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Do what the flags ask for; gives the JSON object."""
    from heads.comparing import find_run
    from heads.runs import read_run
    from heads.serving.inputs import inputs_of
    from heads.serving.resumable_file import refuse_finished

    format_name = _format(arguments)
    if arguments.abstain is not None and not 0 < arguments.abstain <= 1:
        raise UsageError(f"--abstain {arguments.abstain:g}: expected a probability above 0 and at most 1")
    if arguments.workers is not None and arguments.workers < 0:
        raise UsageError(f"--workers {arguments.workers}: expected a whole number from 0 on")
    if arguments.out is not None:
        refuse_finished(arguments.out, anew=arguments.restart)
    folder = find_run(arguments.run, arguments.runs_dir)
    record = read_run(folder).record
    check_encoder_flags(folder, record, arguments)
    with inputs_of(arguments.paths, sys.stdin.buffer) as inputs:
        return _predict(arguments, console, folder, record, inputs, format_name)


def _predict(
    arguments: argparse.Namespace,
    console: Console,
    folder: Path,
    record: Mapping[str, Any],
    inputs: Inputs,
    format_name: str,
) -> dict[str, Any]:
    total, left_out = inputs.counted()
    for note in left_out.notes():
        console.note(note)
    loaded, asked = _loaded(folder, record, arguments, console)

    from heads.serving.labelling import label_to_file, label_to_stream
    from heads.serving.predictions import Layout, writer_of

    layout = Layout(
        value="probability" if loaded.probabilistic else "score",
        top=asked.top,
        neighbors=asked.neighbors,
        class_width=max(map(len, (*loaded.class_names, "class"))),
    )
    writer = writer_of(format_name, layout)
    begun = time.perf_counter()
    shown: AbstractContextManager[Callable[[int, int], None]] = console.progress("predicting", "images")
    if arguments.out is None and sys.stdout.isatty():  # no bar where the lines themselves pass by
        shown = nullcontext(lambda done, total: None)
    with shown as progress:

        def on_done(done: int) -> None:
            progress(done, total)

        if arguments.out is None:
            labelled = label_to_stream(asked, inputs, writer, sys.stdout.buffer, on_done)
        else:
            labelled = label_to_file(
                asked,
                inputs,
                writer,
                arguments.out,
                format_name=format_name,
                anew=arguments.restart,
                on_done=on_done,
                on_note=console.note,
            )
    told = _told(folder, labelled, arguments.out, time.perf_counter() - begun)
    _tell(console, told)
    return told


def check_encoder_flags(folder: Path, record: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    """Refuse flags that ask for another backbone or preprocessing than the run's, by name."""
    encoders = record["encoder"].get("parts") or [record["encoder"]]
    asked = {
        "--backbone": arguments.backbone,
        "--image-size": arguments.image_size,
        "--resize": arguments.resize,
        "--mean": None if arguments.mean is None else list(arguments.mean),
        "--std": None if arguments.std is None else list(arguments.std),
    }
    for flag, value in asked.items():
        for encoder in encoders:
            key = flag.removeprefix("--").replace("-", "_")
            own = encoder.get(key) if key == "backbone" else dict(encoder.get("preprocessing", {})).get(key)
            if value is not None and value != own:
                given, its = (_spelled(each) for each in (value, own))
                raise UserError(f"{flag} {given}: {folder} was made with {its}, and knows it; leave the flag out")


def _spelled(value: Any) -> str:
    return ",".join(f"{number:g}" for number in value) if isinstance(value, list) else str(value)


def _loaded(
    folder: Path, record: Mapping[str, Any], arguments: argparse.Namespace, console: Console
) -> tuple[LoadedRun, Predicting]:
    """The run with its engines set up and its canary compared, and what is asked of it."""
    from featcache.common.machine import choose_device, device_name, keep_freed_memory, n_cores
    from heads.serving.drift import refuse_drift
    from heads.serving.loaded_run import load_run
    from heads.serving.predicting import Predicting

    keep_freed_memory()
    own = "eager" if record["kind"] == "finetune" else record["encoder"].get("engine")
    on_cpu = (arguments.engine or own) == "openvino" and arguments.device == "auto"
    device = choose_device("cpu" if on_cpu else arguments.device)
    workers = min(16, n_cores()) if arguments.workers is None else arguments.workers
    loaded = load_run(
        folder,
        device=device,
        weights=arguments.weights,
        engine=arguments.engine,
        batch_size=arguments.batch_size,
        workers=workers,
    )
    if arguments.abstain is not None and not loaded.probabilistic:
        raise UserError(
            f"--abstain {arguments.abstain:g}: the scores of {folder} ({loaded.record['method']}) are no "
            "probabilities: fit it with --calibrate"
        )
    for each in loaded.serving:
        preprocessing = each.backbone.preprocessing
        views = "" if each.augmentation is None else f", averaged over {each.views_per_image} views of each image"
        console.note(
            f"run {folder}: {loaded.record['method']} on {each.backbone.name} ({each.backbone.weights['name']}), "
            f"{preprocessing.image_size} px, {each.engine} in {each.precision}{views}"
        )
    console.note(f"device {device} ({device_name(device)})")
    console.note(refuse_drift(loaded, cache_dir=arguments.cache_dir))
    if not loaded.probabilistic:
        console.note(f"{loaded.record['method']} has scores, no probabilities; --calibrate of bin/fit-head learns them")
    among = None
    if arguments.neighbors:
        from heads.serving.training_neighbors import training_neighbors

        among = training_neighbors(loaded, cache_dir=arguments.cache_dir, device=device)
        console.note(f"{len(among.ids):,} training images to be near to")
    asked = Predicting(
        run=loaded,
        top=min(arguments.top, len(loaded.class_names)),
        abstain=arguments.abstain,
        neighbors=0 if among is None else min(arguments.neighbors, len(among.ids)),
        among=among,
        strict=arguments.strict,
        workers=workers,
    )
    return loaded, asked


def _told(folder: Path, labelled: Labelled, out: Path | None, seconds: float) -> dict[str, Any]:
    from heads.runs import peak_rss_mb

    return {
        "run": str(folder),
        "out": None if out is None else str(out),
        "images": labelled.images,
        **asdict(labelled),
        "seconds": round(seconds, 3),
        "images_per_s": round((labelled.images - labelled.done_before) / seconds, 1),
        "peak_rss_mb": peak_rss_mb(),
    }


def _tell(console: Console, told: Mapping[str, Any]) -> None:
    where = f"{told['out']}: " if told["out"] else ""
    unsure = f", {told['abstained']:,} left open" if told["abstained"] else ""
    console.note(
        f"{where}{told['images']:,} images in {told['seconds']:.1f} s ({told['images_per_s']:,.1f} images/s{unsure})"
    )
    if told["damaged"]:
        console.note(f"{told['damaged']:,} images could not be read, and say why in the column error")


def _format(arguments: argparse.Namespace) -> str:
    if arguments.out is None:
        if arguments.json:
            raise UsageError("--json prints a summary on stdout: give --out FILE for the predictions")
        if arguments.restart:
            raise UsageError("--restart begins --out FILE anew: give one")
        return arguments.format or ("table" if sys.stdout.isatty() else "csv")
    endings = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
    found = arguments.format or endings.get(arguments.out.suffix.lower())
    if found is None or found == "table":
        raise UsageError(f"--out {arguments.out}: give --format csv or jsonl, or a name that ends so")
    return found


def _whole(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to 65536")
    return int(text)
