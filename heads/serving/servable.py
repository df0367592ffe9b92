"""A run in; one torch module that does all that the run does with an image, images to probabilities, out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featcache.sources.preprocessing import Preprocessing
from heads.cached_features import positions
from heads.serving.fitting_graph import Fitting
from heads.serving.head_layers import head_layers
from heads.serving.loaded_run import LoadedRun


class Servable(nn.Module):
    """Resize and crop (where asked for), normalisation, backbone, head with its scaler and temperature, softmax.

    All in float32, whatever precision the features were made in.

    Args:
        run: with one backbone.
        with_preprocessing: whether images come in any size, and are resized and cropped here.

    Attributes:
        input_shape: of a batch; a name stands for what may vary.
        outputs: the names of what ``forward`` returns.
    """

    def __init__(self, run: LoadedRun, *, with_preprocessing: bool) -> None:
        super().__init__()
        embedding = run.embeddings[0]
        preprocessing = run.backbone.preprocessing
        size = preprocessing.image_size
        self.preprocessing = preprocessing
        self.fitting = Fitting(preprocessing) if with_preprocessing else None
        self.input_shape = ("batch", "height", "width", 3) if with_preprocessing else ("batch", 3, size, size)
        self.normalisation = _Normalisation(preprocessing)
        self.trunk = run.backbone.staged.trunk(embedding.cut)
        shape = embedding.row_shape[1:] if embedding.augmentation else embedding.row_shape
        self.pooled = tuple(1 + axis for axis in positions(shape)) if run.pooled else ()
        self.head = head_layers(run.head)
        self.outputs = ("probabilities", "logits") if run.probabilistic else ("scores",)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Probabilities and logits, or scores alone of a head without probabilities; each (N, n_classes) float32.

        Args:
            images: (N, 3, S, S) float32, RGB from 0 to 1, resized and cropped; with preprocessing (N, H, W, 3) uint8,
                RGB.
        """
        if self.fitting is not None:
            images = self.fitting(images).float() / 255
        features = self.trunk(self.normalisation(images))
        if self.pooled:
            features = features.mean(self.pooled)
        scores = self.head(features).float()
        return (scores.softmax(1), scores) if len(self.outputs) > 1 else (scores,)


class _Normalisation(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std
