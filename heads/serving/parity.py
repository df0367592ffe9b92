"""A run, an exported file and pictures in; how far the file's probabilities are from the run's own out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from featcache.cache import pictures
from featcache.common.errors import UserError
from featcache.sources.decoding import DamagedImageError, Pixels, decode
from featcache.sources.decoding import read as read_file
from heads.predictors import Doubles
from heads.serving.loaded_run import LoadedRun
from heads.serving.servable import Servable

#: The largest difference between the file and the same module in torch: both compute in float32.
OF_THE_FILE = 1e-5
#: The largest difference between the file and the run, which rounds features to float16 or computes them in half
#: precision, as its head was fitted on them; by precision where they are stored in float32.
OF_THE_RUN = {"fp32": 1e-5, "fp16": 1e-2, "bf16": 1e-1}
#: At least so much where they are stored in float16.
OF_FLOAT16 = 1e-3
#: At least so much where ONNX Runtime resizes: measured on photographs, one value in 650 (bicubic: 270) is another than
#: torch's, by 1 (bicubic: at most 2) of 255.
OF_RESIZING = 1e-2

#: Images in the file's own layout to the first of its outputs.
Runner = Callable[[NDArray[Any]], NDArray[np.float32]]
Picture = tuple[str, Pixels]


@dataclass(frozen=True, kw_only=True)
class Parity:
    """One comparison.

    Attributes:
        images: which, in words; ``n_images`` how many.
        compared: what with what.
        largest: the largest difference of a probability; of scores, where a head has no probabilities, by the largest
            of the image's scores where that is above 1.
        picture: the image where it is.
        other_labels: images whose label differs.
        tolerance: the most that is accepted.
    """

    images: str
    n_images: int
    compared: str
    largest: float
    picture: str
    other_labels: int
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.largest <= self.tolerance


def tolerance_of(run: LoadedRun) -> float:
    """The most by which a file may differ from the run."""
    embedding = run.embeddings[0]
    return max(OF_THE_RUN[embedding.precision], OF_FLOAT16 if embedding.storage == "float16" else 0.0)


def canary_pictures() -> Iterator[Picture]:
    """The pictures that ship with the package."""
    return zip(pictures.names(), map(decode, pictures.read()), strict=True)


def pictures_at(paths: Iterable[str]) -> Iterator[Picture]:
    """Image files, decoded one by one. Raises UserError where one is damaged."""
    for path in paths:
        try:
            yield path, decode(read_file(Path(path)))
        except DamagedImageError as error:
            raise UserError(f"--check {path}: {error}; leave it out") from error


def compare(
    run: LoadedRun,
    servable: Servable,
    runner: Runner,
    shown: Iterable[Picture],
    *,
    images: str,
    runtime: str,
    at_least: float = 0.0,
) -> tuple[Parity, Parity]:
    """Compare a file with the run itself, and with the same module in torch.

    Args:
        run: what was exported.
        servable: the module that the file was made of.
        runner: runs the file.
        shown: pictures; some are held at a time.
        images, runtime: what the pictures are, and what runs the file, in words.
        at_least: what is accepted in any case.
    """
    own = replace(run, all_views=False)
    step = own.serving[0].group_rows
    gaps: dict[str, list[Doubles]] = {"run": [], "torch": []}
    moved = {"run": 0, "torch": 0}
    names: list[str] = []
    iterator = iter(shown)
    while some := list(islice(iterator, step)):
        names += [name for name, _ in some]
        pixels = [picture for _, picture in some]
        found = np.concatenate([runner(batch) for batch in batches_for(servable, pixels)])
        with torch.inference_mode():
            torchs = np.concatenate(
                [servable(torch.from_numpy(batch))[0].numpy() for batch in batches_for(servable, pixels)]
            )
        for name, expected in (("run", _of_the_run(own, pixels)), ("torch", torchs)):
            gaps[name].append(_gaps(found, expected, probabilistic=run.probabilistic))
            moved[name] += int((found.argmax(1) != expected.argmax(1)).sum())
    if not names:
        raise UserError(f"{images}: no images to compare the file with")
    told = []
    for name, other, tolerance in (
        ("run", "the run's own predictor", tolerance_of(run)),
        ("torch", "the same module in torch", OF_THE_FILE),
    ):
        each = np.concatenate(gaps[name])
        worst = int(each.argmax())
        told.append(
            Parity(
                images=images,
                n_images=len(names),
                compared=f"{runtime} with {other}",
                largest=float(each[worst]),
                picture=names[worst],
                other_labels=moved[name],
                tolerance=max(tolerance, at_least),
            )
        )
    return told[0], told[1]


def batches_for(servable: Servable, pixels: Sequence[Pixels]) -> Iterator[NDArray[Any]]:
    """Pictures as the file takes them: fitted, in one batch; or as they are, one by one, where it fits them itself."""
    if servable.fitting is not None:
        for picture in pixels:
            coloured = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
            yield np.ascontiguousarray(coloured)[None]
        return
    fitted = servable.preprocessing.fit(pixels).expand(-1, 3, -1, -1)
    yield (fitted.float() / 255).contiguous().numpy()


def _of_the_run(run: LoadedRun, pixels: Sequence[Pixels]) -> NDArray[np.floating[Any]]:
    features, usable = run.features([run.backbone.preprocessing.fit(pixels)[:, None]])
    if not usable.all():
        raise UserError(f"{run.folder}: its backbone makes features of these pictures that are not finite")
    return run.probabilities(features) if run.probabilistic else run.scores(features)


def _gaps(found: NDArray[np.float32], expected: NDArray[np.floating[Any]], *, probabilistic: bool) -> Doubles:
    """The largest difference of each row; infinite where one is not comparable."""
    gap = np.abs(found.astype(np.float64) - expected)
    if not probabilistic:
        present = np.abs(expected) < 1e29  # ABSENT is no score
        gap = np.where(present, gap, 0) / np.maximum(1, np.abs(np.where(present, expected, 0)).max(1, keepdims=True))
    largest: Doubles = np.nan_to_num(gap.max(1), nan=np.inf)
    return largest
