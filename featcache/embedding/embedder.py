"""A scikit-learn transformer that embeds paths, PIL images or arrays and keeps what it embedded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin

from featcache.cache.file_format import STORAGES
from featcache.common.errors import UsageError, one_of
from featcache.common.machine import choose_device, n_cores
from featcache.embedding.feature_store import FeatureStore
from featcache.embedding.frozen_encoder import NO_IMAGES, Encoder
from featcache.embedding.job import Embedding
from featcache.models.backbones import load_backbone
from featcache.sources.image_inputs import handed_images

#: Below ``cache_dir``, where what was embedded is kept.
STORE = "embedder"

_PRECISIONS = ("fp32", "bf16", "fp16")
_ENGINES = ("eager", "compile", "openvino")
#: Backbones that a process keeps loaded.
_LOADED = 2
#: One thread loads at a time: random weights are drawn from the process's one generator.
_loading = Lock()


class Embedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """The vector that a frozen backbone makes of each image, as a scikit-learn transformer.

    Nothing is learned: ``fit`` only checks. Images are told apart by their content, and each is embedded once: what a
    cache of the same encoder in ``cache_dir`` holds (``bin/embed`` makes such), or the store in ``cache_dir/embedder``,
    is read. So the folds and grid points of a search embed nothing twice, whichever process comes first. Each call that
    embeds something writes a file and syncs it: for a stream of single images ``cache_dir=None`` is the faster way.

    Parameters:
        backbone, weights, image_size, resize, mean, std: as ``load_backbone`` takes them.
        precision: ``fp32``, ``bf16`` or ``fp16``. It is never chosen by itself, since every image must go the same way.
        engine: ``eager``, ``compile`` or ``openvino``.
        storage: ``float16`` or ``float32``: what features are rounded to, kept or not.
        device: ``auto``, ``cuda``, ``mps`` or ``cpu``.
        batch_size: images a forward pass; None leaves it to the device.
        workers: threads that read and decode ahead; None takes one a core, up to 16.
        cache_dir: a folder; None keeps nothing.
        seed: of random weights.
    """

    def __init__(
        self,
        backbone: str = "efficientnet_lite0",
        *,
        weights: str | None = None,
        image_size: int | None = None,
        resize: Literal["crop", "squash"] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        precision: str = "fp32",
        engine: str = "eager",
        storage: str = "float16",
        device: str = "auto",
        batch_size: int | None = None,
        workers: int | None = None,
        cache_dir: str | Path | None = "features",
        seed: int = 0,
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.image_size = image_size
        self.resize = resize
        self.mean = mean
        self.std = std
        self.precision = precision
        self.engine = engine
        self.storage = storage
        self.device = device
        self.batch_size = batch_size
        self.workers = workers
        self.cache_dir = cache_dir
        self.seed = seed

    def fit(self, X: Any, y: Any = None) -> Embedder:
        """Check the settings and the kind of X; load the backbone.

        Raises:
            UsageError: a setting or X makes no sense.
            UserError: weights can't be had, or the device is not there.
        """
        handed_images(X)
        self._encoder()
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Embed images, or read what was embedded before.

        Args:
            X: a list, array or pandas column of N paths, a list of PIL images, a list of arrays (H, W) or (H, W, 3)
                uint8, or an array (N, H, W) or (N, H, W, 3) uint8.

        Returns:
            (N, D) float32.

        Raises:
            UsageError: a setting or X makes no sense.
            UserError: images are damaged; the message names them.
        """
        handed, encoder, workers = handed_images(X), self._encoder(), self.workers
        if workers is None:
            workers = 0 if handed.images.in_memory else min(16, n_cores())
        images = handed.distinct()
        if self.cache_dir is None:
            return encoder.features(images, workers=workers)[images.back]
        folder = Path(self.cache_dir)
        store = FeatureStore(encoder=encoder, folder=folder / STORE, beside=(folder,), workers=workers)
        return store.features(images)[images.back]

    @property
    def _n_features_out(self) -> int:
        """D; what scikit-learn names the features by."""
        return self._encoder().n_features

    def _encoder(self) -> Encoder:
        """With the backbone loaded; kept by the process, so that clones share it."""
        for name, given, known in (
            ("precision", self.precision, _PRECISIONS),
            ("engine", self.engine, _ENGINES),
            ("storage", self.storage, STORAGES),
        ):
            if given not in known:
                raise one_of(name, str(given), list(known))
        for name, value, least in (("batch_size", self.batch_size, 1), ("workers", self.workers, 0)):
            if value is not None and value < least:
                raise UsageError(f"{name} is {value!r}; expected a whole number from {least} on, or None")
        with _loading:
            return _load(
                backbone=self.backbone,
                weights=self.weights,
                weights_identity=_identity(self.weights),
                seed=self.seed,
                image_size=self.image_size,
                resize=self.resize,
                mean=None if self.mean is None else tuple(self.mean),
                std=None if self.std is None else tuple(self.std),
                precision=self.precision,
                engine=self.engine,
                storage=self.storage,
                device=self.device,
                batch_size=self.batch_size,
            )

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags


@lru_cache(maxsize=_LOADED)
def _load(
    *,
    weights_identity: tuple[Any, ...],
    precision: str,
    engine: str,
    storage: str,
    device: str,
    batch_size: int | None,
    backbone: str,
    **settings: Any,
) -> Encoder:
    embedding = Embedding(
        dataset=NO_IMAGES,
        backbone=load_backbone(backbone, **settings),
        cache_dir=Path(),  # that of a store, if any
        storage=storage,
        engine=engine,
        precision=precision,
        device=choose_device(device),
        batch_size=batch_size,
    )
    return Encoder(embedding)


def _identity(weights: str | None) -> tuple[Any, ...]:
    """What tells whether a file of weights, or a run's folder, is the one that was loaded before."""
    path = Path(weights or "")
    if not weights or not path.exists():
        return ()
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return tuple((file.name, file.stat().st_ino, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
