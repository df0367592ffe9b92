"""The folder of a finished run in; what scores new images as the run did (encoders, head, classes) out.

A run of ``bin/fit-head`` and one of ``bin/finetune`` come out alike: features, and a head on them. A fine-tuned model's
head is its own last linear layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featcache.common import hashing
from featcache.common.errors import UserError
from featcache.common.files import one_line
from featcache.embedding.job import Embedding
from featcache.embedding.rebuild_encoder import rebuilt
from featcache.models.backbones import Backbone
from heads.cached_features import pooled
from heads.features import ArrayFeatures
from heads.fitting import averaged_scores
from heads.predictors import Doubles, Head, LinearHead, Scores
from heads.runs import read_run
from heads.saved import load_head
from heads.serving.tuned_model import tuned_model


@dataclass(frozen=True, eq=False, kw_only=True)
class LoadedRun:
    """A run that can score new images.

    Attributes:
        folder, record: where it lies, and its ``run.json``.
        class_names: by label.
        embeddings: how images become features, as it was when the head was fitted; of a head on several caches one for
            each, in the order of their columns. They have no images of their own; engines are set up when first used.
        head: takes the features (N, D) of all of them side by side; its scores are divided by the temperature already.
        temperature: that calibration found, for information; None where there was none.
        all_views: whether augmented views are drawn and scored beside the plain one, as the head was tested.
        pooled: whether features are maps that are averaged over their positions.
    """

    folder: Path
    record: dict[str, Any]
    class_names: tuple[str, ...]
    embeddings: tuple[Embedding, ...]
    head: Head
    temperature: float | None
    all_views: bool
    pooled: bool

    @property
    def probabilistic(self) -> bool:
        """Whether the softmax of the scores is a probability."""
        return self.head.probabilistic

    @property
    def backbone(self) -> Backbone:
        """The model in stages, its preprocessing and its weights' digest. Raises UserError where there are several."""
        if len(self.embeddings) != 1:
            raise UserError(f"{self.folder}: its head takes the features of {len(self.embeddings)} backbones, not one")
        return self.embeddings[0].backbone

    @property
    def final_layer(self) -> tuple[Doubles, Doubles] | None:
        """Weight (n_classes, D) and bias (n_classes,) float64 on the features as they are; None of another head.

        The scaler is folded in (`LinearHead.folded`); a class without training rows has the bias ``ABSENT``.
        """
        return self.head.folded() if isinstance(self.head, LinearHead) else None

    @cached_property
    def serving(self) -> tuple[Embedding, ...]:
        """The embeddings that new images go through: without augmented views unless the head takes them."""
        return tuple(
            each if self.all_views or each.augmentation is None else replace(each, augmentation=None)
            for each in self.embeddings
        )

    @cached_property
    def fingerprint(self) -> str:
        """Of all that decides what is predicted: encoders, the head's numbers, classes."""
        arrays = [[name, str(a.dtype), list(a.shape), _digest(a)] for name, a in sorted(self.head.arrays().items())]
        told = {"encoders": [each.encoder for each in self.serving], "head": [self.head.KIND, arrays]}
        return hashing.fingerprint({**told, "classes": list(self.class_names)})

    def features(self, images: Sequence[Tensor]) -> tuple[ArrayFeatures, NDArray[np.bool_]]:
        """Embed one batch.

        Args:
            images: for each of ``serving`` the same images, (n, V, 1 or 3, S, S) uint8 as
                ``featcache.sources.batches.read_views`` gives them; n is at most its ``group_rows``.

        Returns:
            Features (n, D), or (n, V, D) where there are views, rounded as a cache stores them, and which rows, (n,),
            have any: a row with numbers that are not finite, or too large for the cache's type, has zeros.
        """
        parts = [embedding.passes.features(batch) for embedding, batch in zip(self.serving, images, strict=True)]
        usable = np.ones(len(parts[0]), bool)
        for embedding, part in zip(self.serving, parts, strict=True):
            largest = np.abs(part.reshape(len(part), -1)).max(axis=1, initial=0)  # a NaN stays one
            usable &= largest <= np.finfo(embedding.storage).max
        columns = []
        for embedding, part in zip(self.serving, parts, strict=True):
            part[~usable] = 0
            stored = embedding.passes.stored(part)
            if embedding.augmentation is None:
                stored = stored[:, None]
            columns.append(np.stack([pooled(view) for view in np.moveaxis(stored, 1, 0)], 1) if self.pooled else stored)
        values = np.concatenate([column.astype(np.float32) for column in columns], axis=2)
        return ArrayFeatures(values if values.shape[1] > 1 else values[:, 0]), usable

    def scores(self, features: ArrayFeatures | NDArray[np.floating]) -> Scores:
        """Scores (n, n_classes) of features (n, D) or (n, V, D), averaged over views as at test time."""
        given = features if isinstance(features, ArrayFeatures) else ArrayFeatures(np.asarray(features))
        return averaged_scores(self.head, given)

    def probabilities(self, features: ArrayFeatures | NDArray[np.floating]) -> Doubles:
        """Softmax of the scores, float64 (n, n_classes); probabilities where the run is ``probabilistic``."""
        from scipy import special

        found: Doubles = special.softmax(self.scores(features).astype(np.float64), axis=1)
        return found


def load_run(
    folder: Path,
    *,
    device: torch.device,
    weights: str | None = None,
    engine: str | None = None,
    batch_size: int | None = None,
    workers: int = 0,
) -> LoadedRun:
    """Read a run's folder, which may come from a stranger, and get its backbone with the very weights that it had.

    Args:
        folder: of a head, or of a fine-tuning.
        device: to compute on.
        weights: a file (or the run of a fine-tuning), for heads on a backbone whose weights came from one.
        engine: another one than the features were made by.
        batch_size, workers: images a forward pass, and threads that read ahead.

    Raises:
        UserError: it is no run, damaged, or its parts don't fit each other; its encoder can't be had here, or only with
            other weights, preprocessing or libraries, which are named.
    """
    run = read_run(folder)
    settings: dict[str, Any] = {"device": device, "batch_size": batch_size, "workers": workers, "engine": engine}
    if run.record["kind"] == "finetune":
        if weights is not None:
            raise UserError(f"--weights {weights}: {folder} has weights of its own; leave the flag out")
        return _tuned(folder, run.record, settings)
    if run.record["kind"] != "head":
        raise UserError(f"{folder}: a run of the kind {one_line(run.record['kind'])}, expected a head or a fine-tuning")
    return _head(folder, run.record, run.head, weights, settings)


def _head(
    folder: Path, record: dict[str, Any], path: Path, weights: str | None, settings: Mapping[str, Any]
) -> LoadedRun:
    head, meta = load_head(path)
    names = record["dataset"]["class_names"]
    if meta.get("class_names") != names or meta.get("encoder_fingerprint") != record.get("encoder_fingerprint"):
        raise UserError(f"{folder}: head.npz is of another run than run.json (other classes, or another encoder)")
    try:
        cache = record["cache"]
        parts = cache.get("parts") or [{"encoder": record["encoder"], "weights": cache["weights"]}]
        told = [(dict(part["encoder"]), str(part["weights"])) for part in parts]
        views = int(record.get("features", {}).get("views", 1))
        is_pooled = bool(record.get("features", {}).get("pooled", False))
        temperature = None if record.get("calibration") is None else float(record["calibration"]["temperature"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: run.json does not tell of its encoder as runs do ({one_line(error)})") from error
    if weights is not None and len(told) > 1:
        raise UserError(f"--weights {weights}: {folder} has {len(told)} backbones, and only one can be given weights")
    try:
        embeddings = tuple(
            rebuilt(encoder, recorded=recorded, weights=weights, **settings) for encoder, recorded in told
        )
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    loaded = LoadedRun(
        folder=folder,
        record=record,
        class_names=tuple(names),
        embeddings=embeddings,
        head=head,
        temperature=temperature,
        all_views=views > 1,
        pooled=is_pooled,
    )
    width = sum(_width(each.row_shape[1:] if each.augmentation else each.row_shape, is_pooled) for each in embeddings)
    if head.n_features != width or head.n_classes != len(names):
        raise UserError(f"{folder}: its head takes {head.n_features} features, its encoder makes {width}")
    return loaded


def _width(shape: Sequence[int], is_pooled: bool) -> int:
    """How many features an image of this shape has; 0 where a head can't take them."""
    if is_pooled:
        return pooled(np.zeros((1, *shape), np.float32)).shape[1]
    return shape[0] if len(shape) == 1 else 0


def _tuned(folder: Path, record: dict[str, Any], settings: Mapping[str, Any]) -> LoadedRun:
    embedding, head = tuned_model(folder, record, **settings)
    names = record["dataset"]["class_names"]
    if head.n_classes != len(names):
        raise UserError(f"{folder}: model.pth scores {head.n_classes} classes, run.json names {len(names)}")
    return LoadedRun(
        folder=folder,
        record=record,
        class_names=tuple(names),
        embeddings=(embedding,),
        head=head,
        temperature=None,
        all_views=False,
        pooled=False,
    )


def _digest(array: NDArray[Any]) -> str:
    return hashing.digest(np.ascontiguousarray(array).tobytes()).hex()
