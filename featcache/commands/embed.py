"""``bin/embed``: embed a data set with a frozen backbone into a cache."""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.commands.console import Console, Parser, add_subset_flags, new_parser, numbers, run, subset_of
from featcache.common.errors import UsageError
from featcache.common.ranks import ALONE, Ranks

if TYPE_CHECKING:
    import torch

    from featcache.cache.cache_file import Cache
    from featcache.embedding.job import Embedded
    from featcache.sources.augmented_views import Augmentation
    from featcache.sources.image_sets import ImageDataset

DESCRIPTION = """Embed a data set once with a frozen backbone into an HDF5 cache, from which heads train in seconds. The
same command again finds the cache and does nothing; after an interruption it goes on. Processes that torchrun starts
share the work."""

#: Classes that are named; of digits, all.
_MAX_CLASSES = 10


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    given = tuple(sys.argv[1:] if argv is None else argv)
    ranks = Ranks.of_environment()

    def command(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
        with ranks.joined():
            return embed(arguments, console, given, ranks)

    return run(
        embed_parser(),
        command,
        argv,
        on_interrupt="what is done is kept: run the same command to go on",
        ranks=ranks,
    )


def embed_parser() -> Parser:
    """The flags of ``bin/embed``."""
    parser = new_parser("embed", DESCRIPTION)
    data = parser.add_argument_group("data set")
    data.add_argument(
        "--dataset",
        default="digits",
        help="digits, a torchvision set (fashion-mnist, cifar10, …), or a folder root/<class>/* or "
        "root/{train,val,test}/<class>/* (digits)",
    )
    data.add_argument("--root", type=Path, default=Path("data"), help="where downloaded sets live (data)")
    data.add_argument("--name", help="of the data set, in the cache and its file name (the set's or the folder's)")
    data.add_argument("--strict", action="store_true", help="fail at the first damaged image instead of leaving it out")
    add_subset_flags(parser)
    model = parser.add_argument_group("backbone")
    model.add_argument(
        "--backbone",
        default="efficientnet_lite0",
        help="a torchvision model (resnet18, vit_b_16, …), timm/<name>, or efficientnet_lite0, which needs no download "
        "(efficientnet_lite0)",
    )
    model.add_argument("--weights", help="a weights name, a .pth or .safetensors file, the folder of a "
                       "fine-tuning run, or none (the backbone's best)")  # fmt: skip
    model.add_argument("--cut", metavar="STAGE", help="cache the output of this stage instead of the last one's")
    model.add_argument("--image-size", type=int, metavar="PIXELS", help="side of the square that the backbone sees")
    model.add_argument("--resize", choices=("crop", "squash"), help="keep proportions and crop, or squash")
    model.add_argument("--mean", type=numbers, metavar="R,G,B", help="channel means, on the scale 0 to 1")
    model.add_argument("--std", type=numbers, metavar="R,G,B", help="channel standard deviations, likewise")
    views = parser.add_argument_group("augmented views, cached beside the plain one")
    views.add_argument("--views", type=int, default=0, metavar="K", help="so many of each image (0)")
    views.add_argument(
        "--crop-scale", type=numbers, metavar="A,B", help="least and greatest share of the area shown (0.35,1)"
    )
    views.add_argument("--flip", type=float, metavar="P", help="probability that a view is mirrored (0.5)")
    work = parser.add_argument_group("work")
    work.add_argument("--device", default="auto", help="auto, cuda, mps or cpu (auto)")
    work.add_argument(
        "--engine",
        choices=("auto", "eager", "compile", "openvino"),
        default="auto",
        help="what runs the backbone; auto sets a faster one up where the set is large enough (auto)",
    )
    work.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16", "int8"),
        default="auto",
        help="auto is bf16 where the processor has it and it is faithful, else fp32; int8 takes OpenVINO (auto)",
    )
    work.add_argument(
        "--batch-size", type=_batch_size, metavar="auto|N", help="images a forward pass (16 on a CPU, 256 on a GPU)"
    )
    work.add_argument("--workers", type=int, metavar="N", help="threads that read and decode (one a core, up to 16)")
    work.add_argument("--storage", choices=("float16", "float32"), default="float16", help="of the features (float16)")
    work.add_argument(
        "--max-gb", type=float, default=20, metavar="GB", help="refuse to cache features beyond this (20)"
    )
    return parser


def _batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a whole number from 1 to 65536")
    return int(text)


def embed(
    arguments: argparse.Namespace, console: Console, given: tuple[str, ...], ranks: Ranks = ALONE
) -> dict[str, Any]:
    """Do what the flags ask for, and record ``given`` for ``bin/cache resume``; gives the JSON object.

    ``ranks`` are the processes that do it together, joined; one alone unless told otherwise.
    """
    from featcache.sources.image_sets import load_dataset

    if arguments.workers is not None and arguments.workers < 0:
        raise UsageError(f"--workers {arguments.workers}: expected a whole number from 0 on")
    with ranks.in_turn():
        dataset = load_dataset(arguments.dataset, root=arguments.root, subset=subset_of(arguments))
    if arguments.name is not None:
        if not re.fullmatch(r"\w[\w.+-]*", arguments.name, re.ASCII):
            raise UsageError(f"--name {arguments.name!r}: expected letters, digits, and . _ + - after the first")
        dataset = replace(dataset, name=arguments.name)
    sizes = ", ".join(f"{len(split.ids):,} {name}" for name, split in dataset.splits.items())
    console.note(f"data set {dataset.name}: {len(dataset.class_names)} classes; images: {sizes}")
    console.note(f"  classes: {_few(dataset.class_names)}")
    for note in dataset.notes:
        console.note(f"  {note}")

    from featcache.common.machine import choose_device, device_name, keep_freed_memory
    from featcache.embedding.job import Embedding
    from featcache.models.backbones import load_backbone

    keep_freed_memory()
    device = choose_device(arguments.device, local_rank=None if ranks.is_alone else ranks.local_rank)
    with ranks.in_turn():
        backbone = load_backbone(
            arguments.backbone,
            weights=arguments.weights,
            seed=arguments.seed,
            image_size=arguments.image_size,
            resize=arguments.resize,
            mean=arguments.mean,
            std=arguments.std,
        )
    embedding = Embedding(
        dataset=dataset,
        backbone=backbone,
        cache_dir=arguments.cache_dir,
        cut=backbone.staged.cut_after(arguments.cut) if arguments.cut else None,
        storage=arguments.storage,
        engine=arguments.engine,
        precision=arguments.precision,
        device=device,
        batch_size=arguments.batch_size,
        workers=default_workers(dataset, device, ranks) if arguments.workers is None else arguments.workers,
        strict=arguments.strict,
        augmentation=_augmentation(arguments),
        max_gb=arguments.max_gb,
        command=("embed", *given),
        ranks=ranks,
    )
    end = backbone.staged.stages[(embedding.cut or 0) - 1]
    shape = " x ".join(str(n) for n in embedding.row_shape)
    console.note(
        f"backbone {backbone.name}, weights {backbone.weights['name']}, {backbone.preprocessing.image_size} px, up to "
        f"{end.name}: {shape} features in {embedding.storage}"
    )
    console.note(f"device {device} ({device_name(device)})")
    if not ranks.is_alone:
        devices = Counter(ranks.gather(str(device)))
        console.note(f"{ranks.size} ranks: " + ", ".join(f"{count} on {name}" for name, count in devices.items()))
    console.note(f"the features of {len(dataset):,} images take {embedding.feature_bytes:,} bytes")
    with console.progress("embedding", "images") as progress:
        embedded = embedding.run(
            on_progress=progress, on_wait=lambda holder: _waiting(console, holder), on_note=console.note
        )
    _tell(console, embedded)
    return {
        "cache": str(embedded.cache.path),
        "rows": embedded.rows,
        "rows_reused": embedded.rows_reused,
        "rows_damaged": embedded.rows_damaged,
        "seconds": embedded.seconds,
        "images_per_s": embedded.images_per_s,
        "engine": embedded.settled.engine,
        "precision": embedded.settled.precision,
        "batch_size": embedded.cache.provenance["batch"],
        "fidelity": embedded.cache.provenance.get("engine", {}).get("fidelity"),
        "verdict": embedded.verdict and embedded.verdict.to_json(),
    }


def _few(class_names: Sequence[str]) -> str:
    more = f" and {len(class_names) - _MAX_CLASSES:,} more" if len(class_names) > _MAX_CLASSES else ""
    return ", ".join(class_names[:_MAX_CLASSES]) + more


def _augmentation(arguments: argparse.Namespace) -> Augmentation | None:
    from featcache.sources.augmented_views import Augmentation

    given = {"crop_scale": arguments.crop_scale, "flip": arguments.flip}
    chosen = {name: value for name, value in given.items() if value is not None}
    if arguments.views == 0:
        if chosen:
            raise UsageError("--crop-scale and --flip shape augmented views: ask for some with --views K")
        return None
    return Augmentation(views=arguments.views, seed=arguments.seed, **chosen)


def _waiting(console: Console, holder: str) -> None:
    who = f"process {holder}" if holder.isdecimal() else "another process"
    console.note(f"{who} is building the same cache; waiting for it")


def default_workers(dataset: ImageDataset, device: torch.device, ranks: Ranks = ALONE) -> int:
    """Threads that read ahead: one a core, up to 16, of which ranks have their share.

    None for images in memory where the processor computes: it has no time to spare, and decoding takes none.
    """
    from featcache.common.machine import n_cores

    if device.type == "cpu" and all(split.images.in_memory for split in dataset.splits.values()):
        return 0
    return min(16, max(1, n_cores() // ranks.local_size))


def _tell(console: Console, embedded: Embedded) -> None:
    path, rows, reused = embedded.cache.path, embedded.rows, embedded.rows_reused
    if reused == rows:
        how = f"{embedded.settled.engine}, {embedded.settled.precision}"
        console.note(f"{path} is complete: {rows:,} rows ({how}), nothing to do (checked in {embedded.seconds:.2f} s)")
    else:
        kept = f", {reused:,} were there already" if reused else ""
        console.note(f"{path}: {rows:,} rows in {embedded.seconds:.1f} s ({embedded.images_per_s:,.1f} images/s{kept})")
    if embedded.verdict:
        console.note(str(embedded.verdict))
    if n_images := _of_several_classes(embedded.cache):
        are = "image is" if n_images == 1 else "images are"
        console.note(f"WARNING: {n_images:,} {are} in several classes, as links or copies; bin/audit names them")
    if embedded.rows_damaged:
        console.note(f"{embedded.rows_damaged:,} images have no features; heads leave them out:")
        for split in embedded.cache.splits.values():
            for row_id, message in list(split.errors.items())[:10]:
                console.note(f"  {row_id}: {message}")


def _of_several_classes(cache: Cache) -> int:
    """How many image contents stand under more than one label."""
    import numpy as np

    splits = cache.splits.values()
    content, labels = (np.concatenate(parts) for parts in zip(*((s.content, s.labels) for s in splits), strict=True))
    known = (labels >= 0) & content.any(axis=1)
    content, labels = content[known], labels[known]
    half = np.ascontiguousarray(content[:, :8]).view(np.uint64).reshape(-1)  # sorts 20 times as fast as all 16 bytes
    _, image, counts = np.unique(half, return_inverse=True, return_counts=True)
    several = counts[image.reshape(-1)] > 1
    _, image = np.unique(content[several], axis=0, return_inverse=True)
    pairs = np.unique(np.stack([image.reshape(-1), labels[several]], axis=1), axis=0)
    return int((np.bincount(pairs[:, 0]) > 1).sum())
