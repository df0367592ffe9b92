"""The flags of ``bin/compare`` and its recipe in; what is to be compared, settled and checked, out."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.commands.console import Parser, add_subset_flags, names, new_parser, numbers
from featcache.common.errors import UsageError
from heads.excluding_command import add_exclude_flag

if TYPE_CHECKING:
    from finetune.comparison.methods import Method

DESCRIPTION = """Is fine-tuning worth it? Cached heads and fine-tuning on the same rows: accuracies, costs,
differences from the best head, and a verdict. The same command again finds finished cells and goes on."""

METHODS = ("logreg", "svm", "knn", "head", "full")
BACKBONE = "efficientnet_lite0"
SEEDS = 3
VAL_FRACTION = 0.1

_UNITS = {"h": 3600, "m": 60, "s": 1}


def new_compare_parser() -> Parser:
    """The parser of ``bin/compare``."""
    parser = new_parser("compare", DESCRIPTION)
    parser.add_argument(
        "runs", nargs="*", type=Path, metavar="RUN", help="compare these finished runs, and fit nothing"
    )
    what = parser.add_argument_group("what is compared", "flags go before the recipe")
    what.add_argument("--recipe", metavar="FILE|NAME", help="a TOML file, or a recipe that ships (--recipe list)")
    what.add_argument("--dataset", help="as of bin/embed (digits)")
    what.add_argument("--root", type=Path, default=Path("data"), help="where downloaded sets live (data)")
    what.add_argument("--backbone", help=f"as of bin/embed ({BACKBONE})")
    what.add_argument("--backbones", type=names, metavar="A,B", help="several")
    what.add_argument("--weights", help="of the one backbone, as of bin/embed (the best)")
    what.add_argument("--image-size", type=int, metavar="PIXELS", help="side of the square that backbones see")
    what.add_argument("--resize", choices=("crop", "squash"), help="keep proportions and crop, or squash")
    what.add_argument(
        "--methods",
        type=names,
        metavar="A,B",
        help="classifiers of bin/fit-head; head, partial:layer4, partial:last:2, freeze:early, full, progressive, "
        f"discriminative, lp-ft, scratch; stages joined by + ({','.join(METHODS)})",
    )
    what.add_argument("--seeds", type=int, metavar="N", help=f"seeds from --seed on ({SEEDS})")
    what.add_argument("--fractions", type=numbers, metavar="F,F", help="shares of the training rows, for curves (1)")
    what.add_argument("--val-fraction", type=float, metavar="F", help=f"of train, to choose on ({VAL_FRACTION})")
    how = parser.add_argument_group("how")
    how.add_argument("--epochs", type=int, metavar="N", help="of each fine-tuning (10)")
    how.add_argument("--trials", type=int, metavar="N", help="peak rates that each fine-tuning tries (3)")
    how.add_argument("--batch-size", type=int, metavar="N", help="of fine-tuning (32)")
    how.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), help="of fine-tuning (auto)")
    how.add_argument("--budget", type=duration, metavar="30m", help="begin no cell after so long: 90s, 30m, 1h30m")
    how.add_argument("--record-test-curve", action="store_true", help="score test rows after each epoch too, for the "
                     "report; used for nothing")  # fmt: skip
    how.add_argument("--device", default="auto", help="auto, cuda, mps or cpu (auto)")
    how.add_argument("--workers", type=int, metavar="N", help="threads that decode ahead (one a core)")
    add_subset_flags(parser)
    add_exclude_flag(parser)
    parser.add_argument(
        "--map", choices=("pca", "tsne", "umap"), default="pca", help="how the report draws the embedding in 2-D (pca)"
    )
    parser.add_argument("--no-report", action="store_true", help="write no report.html")
    parser.add_argument("--name", help="of the comparison's folder (data set and a fingerprint)")
    return parser


def duration(text: str) -> float:
    """``1h30m`` in seconds."""
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    if not text or parts is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time, such as 90s, 30m or 1h30m")
    return float(sum(int(part) * size for part, size in zip(parts.groups(), _UNITS.values(), strict=True) if part))


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be compared: flags, and what a recipe says where they are silent.

    Attributes:
        recipe: its name, or None.
        about: what the recipe is, in a sentence.
        dataset, backbones, methods, seeds, fractions, val_fraction: settled.
        preprocessing, rows: flags of ``bin/embed``, by name, of the cache that all methods share.
        overridden: whether backbones come from the flags, so that methods which a recipe has for some take them all.
    """

    recipe: str | None
    about: str
    dataset: str
    backbones: tuple[str, ...]
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    fractions: tuple[float, ...]
    val_fraction: float
    preprocessing: Mapping[str, Any]
    rows: Mapping[str, Any]
    overridden: bool

    def methods_for(self, backbone: str) -> list[Method]:
        """The methods that a backbone is compared by."""
        return [m for m in self.methods if self.overridden or not m.backbones or backbone in m.backbones]


def asked(arguments: argparse.Namespace) -> Asked:
    """Settle flags and recipe. Raises UsageError for what makes no sense, UserError for a recipe that can't be read."""
    from finetune.comparison.recipe import Named, Recipe, methods_of, read_recipe

    _check(arguments)
    recipe = read_recipe(arguments.recipe) if arguments.recipe else Recipe(name="")
    flags = {"epochs": arguments.epochs, "trials": arguments.trials, "batch-size": arguments.batch_size}
    flags["precision"] = None if arguments.precision == "auto" else arguments.precision
    override = {key: value for key, value in flags.items() if value is not None}
    named: list[Named] = [(name, name, {}) for name in arguments.methods or ()]
    usual: list[Named] = [(name, name, {}) for name in METHODS]
    methods = methods_of(named or recipe.methods or usual, recipe.training, override)
    given = arguments.backbones or ((arguments.backbone,) if arguments.backbone else ())
    seeds = arguments.seeds if arguments.seeds is not None else recipe.seeds if recipe.seeds is not None else SEEDS
    if seeds < 1:
        raise UsageError(f"--seeds {seeds}: expected a whole number of at least 1")
    fractions = arguments.fractions or recipe.fractions or (1.0,)
    for fraction in fractions:
        if not 0 < fraction <= 1:
            raise UsageError(f"--fractions {fraction:g}: expected numbers above 0 and at most 1")
    shares = (arguments.val_fraction, recipe.val_fraction, VAL_FRACTION)
    val_fraction = next(share for share in shares if share is not None)
    if not 0 < val_fraction < 1:
        raise UsageError(f"--val-fraction {val_fraction:g}: expected a number between 0 and 1")
    backbones = given or recipe.backbones or (BACKBONE,)
    if len(set(backbones)) < len(backbones):
        raise UsageError(f"--backbones {','.join(backbones)}: one is named twice")
    if arguments.weights and len(backbones) > 1:
        raise UsageError("--weights are of one backbone, and --backbones names several: leave one of them out")
    seen = {"image-size": arguments.image_size or recipe.image_size, "resize": arguments.resize or recipe.resize}
    return Asked(
        recipe=recipe.name or None,
        about=recipe.about,
        dataset=arguments.dataset or recipe.dataset or "digits",
        backbones=tuple(backbones),
        methods=methods,
        seeds=tuple(range(arguments.seed, arguments.seed + seeds)),
        fractions=tuple(fractions),
        val_fraction=val_fraction,
        preprocessing={key: value for key, value in seen.items() if value is not None},
        rows=_rows(arguments, recipe.rows),
        overridden=bool(given),
    )


def embed_words(
    wanted: Asked, arguments: argparse.Namespace, *, backbone: str, preprocessing: Mapping[str, Any]
) -> tuple[str, ...]:
    """The flags of the ``bin/embed`` that makes the cache of a backbone."""
    rows = dict(wanted.rows)
    flags: dict[str, Any] = {
        "dataset": wanted.dataset,
        "root": arguments.root,
        "backbone": backbone,
        "weights": arguments.weights,
        "cache-dir": arguments.cache_dir,
        "seed": arguments.seed,
        "device": arguments.device,
        "workers": arguments.workers,
        **wanted.preprocessing,
        **{key.replace("_", "-"): value for key, value in preprocessing.items()},
        "classes": ",".join(rows.get("classes", ())) or None,
        "per-class": rows.get("per_class"),
        "fraction": rows.get("fraction"),
        "take": rows.get("take"),
        "limit": ",".join(f"{split}={count}" for split, count in rows.get("limit", {}).items()) or None,
    }
    return tuple(f"--{key}={value}" for key, value in flags.items() if value is not None)


def _rows(arguments: argparse.Namespace, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The subset; flags for its numbers go before the recipe's, --per-class and --fraction in each other's place."""
    flags = {key: getattr(arguments, key) for key in ("classes", "per_class", "fraction", "limit")}
    given = {key: value for key, value in flags.items() if value not in (None, (), {})}
    if arguments.take != "random":
        given["take"] = arguments.take
    rows = dict(recipe)
    if "per_class" in given or "fraction" in given:
        rows = {key: value for key, value in rows.items() if key not in ("per_class", "fraction")}
    return {**rows, **given}


def _check(arguments: argparse.Namespace) -> None:
    if arguments.backbone and arguments.backbones:
        raise UsageError("--backbone and --backbones exclude one another: give one of them")
    if arguments.workers is not None and arguments.workers < 0:
        raise UsageError(f"--workers {arguments.workers}: expected a whole number from 0 on")
    if arguments.seed < 0:
        raise UsageError(f"--seed {arguments.seed}: expected a whole number from 0 on")


def check_name(name: str | None) -> None:
    """Refuse a --name that is no folder's. Raises UsageError."""
    if name is not None and not re.fullmatch(r"\w[\w.+-]*", name, re.ASCII):
        raise UsageError(f"--name {name!r}: expected letters, digits, and . _ + - after the first")
