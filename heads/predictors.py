"""What a fitted head is: frozen plain arrays that turn features (N, D) into class scores (N, n_classes) by numpy.

Fitting builds these types and loading rebuilds them from the same arrays, so a saved head predicts the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from featcache.common.errors import UserError
from heads.standardization import Floats, Labels, standardized

if TYPE_CHECKING:
    from typing_extensions import Self

    from heads.features import Features

Doubles = NDArray[np.float64]
Scores = NDArray[np.floating[Any]]
SomeHead = TypeVar("SomeHead", bound="Head")

ABSENT = -1e30
"""Score of a class without training rows: never the largest, probability 0 under softmax, and finite in float32."""

_BLOCK = 4096  # rows scored at once


@dataclass(frozen=True, eq=False, kw_only=True)
class Head:
    """A fitted classifier as plain arrays. `LAYOUT` gives each array's dtype and axes (one letter an axis).

    `probabilistic` says whether the softmax of the scores is a probability. Every concrete head has `n_classes` and
    `n_parameters`, the count of the numbers that fitting determined (stored training rows are not counted).
    """

    KIND: ClassVar[str]
    LAYOUT: ClassVar[dict[str, tuple[str, str]]]

    @property
    def n_features(self) -> int:
        """D, the length of the feature vectors the head takes."""
        return next(
            int(getattr(self, name).shape[axes.index("D")]) for name, (_, axes) in self.LAYOUT.items() if "D" in axes
        )

    def scores(self, features: Floats) -> Scores:
        """Class scores (N, n_classes), float32 or float64, of features (N, D); rows are scored in blocks.

        Raises UserError where the features are no (N, D) array of the D the head was fitted on.
        """
        features = np.asarray(features)
        if features.ndim != 2 or features.shape[1] != self.n_features:
            raise UserError(f"the features are {features.shape}, the head was fitted on (N, {self.n_features})")
        features = features.astype(np.float32, copy=False)
        blocks = [self._block(features[i : i + _BLOCK]) for i in range(0, max(len(features), 1), _BLOCK)]
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    def scores_of(self, features: Features) -> Scores:
        """Class scores (N, n_classes) of the plain view of features that need not be in memory."""
        found = [self.scores(block) for _, block in features.blocks()]
        return np.concatenate(found) if found else self.scores(np.empty(features.shape, np.float32))

    def predict(self, features: Floats) -> Labels:
        """The class of the largest score of each row, int64 (N,)."""
        return self.scores(features).argmax(axis=1).astype(np.int64)

    def scaled(self, temperature: float) -> Head:
        """The head whose scores are these divided by `temperature` > 0 (Guo et al. 2017, arXiv:1706.04599), as it then
        is: probabilistic. A class without training rows keeps the score ABSENT.

        Raises UserError where such a head has no probabilities, or has a temperature already.
        """
        raise UserError(f"a {self.KIND} head is not calibrated by a temperature: its scores are no log-probabilities")

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All fields as arrays, numbers as arrays without axes: what `from_arrays` takes."""
        return {f.name: np.asarray(getattr(self, f.name), self.LAYOUT[f.name][0]) for f in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The head made of these arrays. Raises UserError naming the first array that does not fit."""
        if set(arrays) != set(cls.LAYOUT):
            raise UserError(f"a {cls.KIND} head holds {sorted(cls.LAYOUT)}, got {sorted(arrays)}")
        sizes: dict[str, int] = {}
        for name, (dtype, axes) in cls.LAYOUT.items():
            array = np.asarray(arrays[name])
            if array.dtype != np.dtype(dtype) or array.ndim != len(axes):
                raise UserError(f"{name} is {array.dtype}{array.shape}, expected {dtype} with {len(axes)} axes")
            for axis, size in zip(axes, array.shape, strict=True):
                if sizes.setdefault(axis, size) != size:
                    raise UserError(f"{name} is {array.shape}, which does not fit the other arrays ({axis} is {sizes})")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise UserError(f"{name} holds values that are not finite")
        head = cls(**{name: a if a.ndim else a.item() for name, a in arrays.items()})
        if fault := head._fault():
            raise UserError(fault)
        return head

    if TYPE_CHECKING:  # each head has these as a property, a field or a constant

        @property
        def n_classes(self) -> int: ...
        @property
        def n_parameters(self) -> int: ...
        @property
        def probabilistic(self) -> bool: ...

    def _block(self, features: Floats) -> Scores:
        raise NotImplementedError

    def _fault(self) -> str:
        return ""


def scale_fault(scale: Floats) -> str:
    """What is wrong with a scale to divide by, or nothing."""
    return "" if (scale > 0).all() else "scale holds values that are not positive"


def class_rows(weight: Scores, bias: Scores, present: Labels, n_classes: int) -> tuple[Floats, Floats]:
    """Weight (P, D) and bias (P,) of the classes in `present`, spread to float32 (n_classes, D) and (n_classes,).

    The other classes get zero weight and the bias ABSENT.
    """
    full = np.zeros((n_classes, weight.shape[1]), np.float32)
    full[present] = weight
    biases = np.full(n_classes, ABSENT, np.float32)
    biases[present] = bias
    return full, biases


def cooled(weight: Floats, bias: Floats, temperature: float) -> tuple[Floats, Floats]:
    """Weight (C, D) and bias (C,) divided by a temperature, float32, but for biases that say ABSENT."""
    if not 0 < temperature < np.inf:
        raise UserError(f"temperature is {temperature}, expected a positive number")
    kept = np.where(bias > ABSENT / 2, bias / temperature, bias)
    return (weight / temperature).astype(np.float32), kept.astype(np.float32)


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearHead(Head):
    """Standardise, then one row of weights a class: scores float32 = (x - mean) / scale @ weight.T + bias."""

    KIND = "linear"
    LAYOUT: ClassVar = {
        "mean": ("float32", "D"),
        "scale": ("float32", "D"),
        "weight": ("float32", "CD"),
        "bias": ("float32", "C"),
        "probabilistic": ("bool", ""),
    }
    mean: Floats
    scale: Floats
    weight: Floats
    bias: Floats
    probabilistic: bool

    @property
    def n_classes(self) -> int:
        return len(self.bias)

    @property
    def n_parameters(self) -> int:
        return self.weight.size + self.bias.size

    def scaled(self, temperature: float) -> LinearHead:
        weight, bias = cooled(self.weight, self.bias, temperature)
        return replace(self, weight=weight, bias=bias, probabilistic=True)

    def folded(self) -> tuple[Doubles, Doubles]:
        """Weight (C, D) and bias (C,) float64 of the same scores on features that are not standardised.

        (x - mean) / scale @ W.T + b = x @ (W / scale).T + (b - W @ (mean / scale)). The bias of a class without
        training rows is ABSENT.
        """
        weight = self.weight.astype(np.float64) / self.scale.astype(np.float64)
        return weight, self.bias.astype(np.float64) - weight @ self.mean.astype(np.float64)

    def _block(self, features: Floats) -> Scores:
        return standardized(features, self.mean, self.scale) @ self.weight.T + self.bias

    def _fault(self) -> str:
        return scale_fault(self.scale)


@dataclass(frozen=True, eq=False, kw_only=True)
class MLPHead(Head):
    """Standardise, one hidden layer with ReLU, then one row of weights a class; scores are float32 logits."""

    KIND = "mlp"
    LAYOUT: ClassVar = {
        "mean": ("float32", "D"),
        "scale": ("float32", "D"),
        "hidden_weight": ("float32", "HD"),
        "hidden_bias": ("float32", "H"),
        "weight": ("float32", "CH"),
        "bias": ("float32", "C"),
    }
    mean: Floats
    scale: Floats
    hidden_weight: Floats
    hidden_bias: Floats
    weight: Floats
    bias: Floats
    probabilistic = True

    @property
    def n_classes(self) -> int:
        return len(self.bias)

    @property
    def n_parameters(self) -> int:
        return self.hidden_weight.size + self.hidden_bias.size + self.weight.size + self.bias.size

    def scaled(self, temperature: float) -> MLPHead:
        weight, bias = cooled(self.weight, self.bias, temperature)
        return replace(self, weight=weight, bias=bias)

    def _block(self, features: Floats) -> Scores:
        hidden = standardized(features, self.mean, self.scale) @ self.hidden_weight.T + self.hidden_bias
        return np.maximum(hidden, 0.0, out=hidden) @ self.weight.T + self.bias

    def _fault(self) -> str:
        return scale_fault(self.scale)
