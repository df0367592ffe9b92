"""The flags of ``bin/finetune`` against forgetting in; the settings and measurements that they ask for out."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from featcache.commands.console import Parser, limits, names
from featcache.common.errors import UsageError

if TYPE_CHECKING:
    from featcache.cache.cache_file import Cache
    from featcache.models.backbones import Backbone
    from featcache.sources.image_sets import ImageDataset
    from finetune.forgetting import Scored
    from finetune.job_command import Job
    from finetune.rehearsal import Rehearsed


def add_forgetting_flags(parser: Parser) -> None:
    """What keeps thawed stages near their start, and what measures how far they went."""
    group = parser.add_argument_group("against forgetting", "of thawed stages; the head is new")
    group.add_argument("--l2-sp", type=float, metavar="A", help="pull weights to their start, instead of weight decay")
    group.add_argument("--ewc", type=float, metavar="A", help="the same, by what the pretrained model needs (Fisher)")
    group.add_argument("--wise-ft", type=_shares, default=(), metavar="F",
                       help="average with the start: the share of the tuned weights, several to choose from on "
                       "validation rows (0.3,0.5,0.7), or auto (0,0.1,…,1)")  # fmt: skip
    group.add_argument("--rehearse", metavar="DATASET",
                       help="keep the answers of the final layer that the weights came with to this set's training "
                       "images (distillation)")  # fmt: skip
    group.add_argument("--rehearse-weight", type=float, metavar="W", help="of an image of these, beside others (1)")
    group.add_argument("--rehearse-limit", type=limits, metavar="S=N,S=N", help="that set's first rows: train=2000")
    group.add_argument("--measure-forgetting", metavar="DATASET",
                       help="fit a head on another set's features before and after, and tell the change")  # fmt: skip
    group.add_argument("--forgetting-head", choices=("ridge", "logreg"), help="which head (ridge)")
    group.add_argument("--forgetting-limit", type=limits, metavar="S=N,S=N",
                       help="the first rows of that set's splits: train=2000,test=500")  # fmt: skip


def check_forgetting_flags(arguments: argparse.Namespace) -> None:
    """Refuse flags of what was not asked for. Raises UsageError."""
    if arguments.from_scratch and arguments.measure_forgetting is not None:
        raise UsageError(
            "--from-scratch and --measure-forgetting exclude one another: random weights have nothing to forget"
        )
    for flag, needed in (
        ("forgetting-head", "measure-forgetting"),
        ("forgetting-limit", "measure-forgetting"),
        ("rehearse-weight", "rehearse"),
        ("rehearse-limit", "rehearse"),
    ):
        given, wanted = (getattr(arguments, name.replace("-", "_")) for name in (flag, needed))
        if given is not None and wanted is None:
            raise UsageError(f"--{flag} is for --{needed}: add it, or leave this out")


def forgetting_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings of these flags, by name."""
    weight = 1.0 if arguments.rehearse_weight is None else arguments.rehearse_weight
    return {
        "l2_sp": arguments.l2_sp,
        "ewc": arguments.ewc,
        "wise_ft": arguments.wise_ft,
        "rehearse": None if arguments.rehearse is None else weight,
    }


def rehearsed_by(job: Job) -> Rehearsed | None:
    """What is to be rehearsed, embedded by the start; None where it was not asked for."""
    if job.arguments.rehearse is None:
        return None
    from finetune.rehearsal import rehearsed_rows

    dataset = _other_set(job, job.arguments.rehearse, job.arguments.rehearse_limit)
    found = _embedded(job, dataset, job.backbone, storage="float32")
    return rehearsed_rows(found, dataset, device=job.device, workers=job.workers(dataset))


def score_start(job: Job) -> tuple[ImageDataset, Scored] | None:
    """The other set, and the head on its features by the start; None where it was not asked for.

    Made before the training, so that what is wrong with that set shows at once.
    """
    if job.arguments.measure_forgetting is None:
        return None
    dataset = _other_set(job, job.arguments.measure_forgetting, job.arguments.forgetting_limit)
    return dataset, _scored(job, dataset, job.backbone)


def score_tuned(job: Job, before: tuple[ImageDataset, Scored]) -> dict[str, Any]:
    """What `finetune.forgetting.forgotten` tells, once the backbone's model has been trained."""
    from finetune.forgetting import forgotten, tuned_backbone

    dataset, start = before
    return forgotten(start, _scored(job, dataset, tuned_backbone(job.backbone)))


def forgetting_table(told: Mapping[str, Any]) -> tuple[str, tuple[str, ...], list[tuple[str, ...]]]:
    """Title, columns and cells for ``Console.table``."""
    columns = ("head", "before", "after", "change", "95 % interval", "McNemar's p")
    cells = (
        told["clf"],
        f"{told['start']['accuracy']:.4f}",
        f"{told['tuned']['accuracy']:.4f}",
        f"{told['difference']:+.4f}",
        " to ".join(f"{end:+.4f}" for end in told["ci95"]),
        f"{told['p_value']:.2g}",
    )
    return f"{told['dataset']}: accuracy of a refitted head on {told['n_test']:,} test rows", columns, [cells]


def _other_set(job: Job, name: str, limit: Mapping[str, int] | None) -> ImageDataset:
    """Another data set, found as the cache's own; the same rows whatever the run's seed, so that caches serve again."""
    from featcache.maintenance.image_provenance import origin_of
    from featcache.sources.image_sets import load_dataset
    from featcache.tables.subset import Subset

    with job.ranks.in_turn():
        dataset = load_dataset(name, root=origin_of(job.cache).root, subset=Subset(limit=limit or {}))
    for note in dataset.notes:
        job.console.note(f"  {dataset.name}: {note}")
    return dataset


def _scored(job: Job, dataset: ImageDataset, backbone: Backbone) -> Scored:
    from finetune.forgetting import scored

    found = _embedded(job, dataset, backbone, storage=job.cache.encoder["storage"])
    return scored(found, clf=job.arguments.forgetting_head or "ridge", val_fraction=job.arguments.val_fraction)


def _embedded(job: Job, dataset: ImageDataset, backbone: Backbone, *, storage: str) -> Cache:
    from finetune.forgetting import embedded

    with job.console.progress(f"embedding {dataset.name}", "images") as progress:
        found = embedded(
            dataset,
            backbone,
            folder=job.arguments.cache_dir,
            storage=storage,
            device=job.device,
            workers=job.workers(dataset),
            ranks=job.ranks,
            on_progress=progress,
            on_note=job.console.note,
        )
    job.console.note(f"{dataset.name} by {backbone.weights['name']}: {found.path}")
    return found


def _shares(text: str) -> tuple[float, ...]:
    if text == "auto":
        from finetune.settings import ALL_SHARES

        return ALL_SHARES
    try:
        shares = tuple(float(number) for number in names(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor of the form 0.5 or 0.3,0.5,0.7") from error
    if not shares or not all(0 <= share <= 1 for share in shares):
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers from 0 (the start) to 1 (as tuned), or auto")
    return shares
