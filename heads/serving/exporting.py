"""A run in; one file that holds all it takes to label images, compared with the run before it gets its name, out."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.common.disk import explained, give_name, removed_on_failure, sync_file
from featcache.common.errors import UsageError, UserError, missing_extra
from heads.serving import graph, onnx_file, torch_file, weights_file
from heads.serving.description import as_texts, description
from heads.serving.inputs import Inputs
from heads.serving.loaded_run import LoadedRun
from heads.serving.parity import OF_RESIZING, Parity, Runner, canary_pictures, compare, pictures_at
from heads.serving.servable import Servable

#: Formats, and how the names of their files end.
FORMATS = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}
#: What each format needs beside torch: packages, and the extra that brings them.
_NEEDED: dict[str, tuple[tuple[str, ...], str]] = {
    "onnx": (("onnx", "onnxscript", "onnxruntime"), "export"),
    "torch": ((), ""),
    "safetensors": (("safetensors",), "safetensors"),
}
#: What runs each format where a file is compared with its run.
_RUNTIMES = {"onnx": "onnxruntime", "torch": "torch.export", "safetensors": "the weights in torch"}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file that was written.

    Attributes:
        path, n_bytes: the file; its name has a number if another process took the one that was asked for.
        description: what it tells of itself.
        parity: how far it is from the run.
    """

    path: Path
    n_bytes: int
    description: dict[str, Any]
    parity: tuple[Parity, ...]


def check_request(path: Path, *, file_format: str, with_preprocessing: bool, force: bool) -> None:
    """Refuse what can be refused before a run is loaded; raises as `export_run` does."""
    if path.suffix != FORMATS[file_format]:
        raise UsageError(f"--out {path}: expected a name that ends in {FORMATS[file_format]}, as {file_format} has it")
    if with_preprocessing and file_format == "safetensors":
        raise UsageError("--with-preprocessing: a safetensors file holds weights alone; take --format onnx or torch")
    packages, extra = _NEEDED[file_format]
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise missing_extra(package, extra)
    _refuse_taken(path, force=force)


def export_run(
    run: LoadedRun,
    path: Path,
    *,
    file_format: str,
    with_preprocessing: bool = False,
    check: Inputs | None = None,
    force: bool = False,
) -> Exported:
    """Write a run to a file, whole or not at all.

    Args:
        run: on the CPU, with one backbone.
        path: of the file, with the ending of its format.
        file_format: one of `FORMATS`.
        with_preprocessing: whether the graph resizes and crops images of any size.
        check: images to compare the file with its run on, beside the pictures that ship with the package.
        force: whether a file of that name is replaced.

    Raises:
        UsageError: another ending, or preprocessing in a file that holds weights alone.
        UserError: a package is missing, there is such a file, the run can't be exported, the file differs from the run
            by more than the tolerance, or the folder can't be written.
    """
    check_request(path, file_format=file_format, with_preprocessing=with_preprocessing, force=force)
    if len(run.embeddings) != 1:
        raise UserError(
            f"{run.folder}: its head takes the features of {len(run.embeddings)} backbones, and a file holds one: fit "
            "a head on one cache, or use bin/predict"
        )
    servable = Servable(run, with_preprocessing=with_preprocessing)
    told = description(run, servable)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    with explained(path.parent), removed_on_failure(temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        runner = _written(run, servable, temporary, told, file_format)
        parity = _compared(run, servable, runner, check, _RUNTIMES[file_format])
        n_bytes = temporary.stat().st_size
        sync_file(temporary)
    given = give_name(temporary, path, replace=force)
    return Exported(path=given, n_bytes=n_bytes, description=told, parity=parity)


def _written(run: LoadedRun, servable: Servable, path: Path, told: dict[str, Any], file_format: str) -> Runner:
    """Write the file; gives what runs it as it was written."""
    if file_format == "safetensors":
        told["load"] = weights_file.loading_lines(run)
        model = weights_file.whole_model(run)
        weights_file.write(model, path, as_texts(told))
        return weights_file.reader(path, model, servable.preprocessing, probabilistic=run.probabilistic)
    traced = graph.graph_of(servable)
    if file_format == "torch":
        torch_file.write(traced, path, told)
        return torch_file.reader(path)
    onnx_file.write(traced, path, as_texts(told), input_shape=servable.input_shape, outputs=servable.outputs)
    return onnx_file.reader(path)


def _compared(
    run: LoadedRun, servable: Servable, runner: Runner, check: Inputs | None, runtime: str
) -> tuple[Parity, ...]:
    sets = [("shipped pictures", canary_pictures())]
    if check is not None:
        sets.append(("--check images", pictures_at(check.paths())))
    resized = servable.fitting is not None and runtime == _RUNTIMES["onnx"]
    at_least = OF_RESIZING if resized else 0.0
    told: list[Parity] = []
    for images, shown in sets:
        told += compare(run, servable, runner, shown, images=images, runtime=runtime, at_least=at_least)
    for each in told:
        if not each.holds:
            raise UserError(
                f"{run.folder}: {each.compared} differs by {each.largest:.2g} on {each.picture} (tolerance "
                f"{each.tolerance:g}), so nothing was written; {_mend(run)}"
            )
    return tuple(told)


def _mend(run: LoadedRun) -> str:
    precision, storage = run.embeddings[0].precision, run.embeddings[0].storage
    if (precision, storage) == ("fp32", "float32"):
        return "take another --format"
    again = "train it" if run.record["kind"] == "finetune" else "embed with --storage float32 and fit the head"
    return f"its features are {precision} in {storage}, the file computes in fp32: {again} anew with --precision fp32"


def _refuse_taken(path: Path, *, force: bool) -> None:
    if path.is_dir() or (path.exists() and not force):
        mend = "name another --out" if path.is_dir() else "give --force to replace it, or another --out"
        raise UserError(f"{path}: there is such a {'folder' if path.is_dir() else 'file'}; {mend}")
