"""What is to be compared in; its cells in the order in which they are run, each with the folder of its run, out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from featcache.cache.cache_file import Cache
from featcache.common import hashing
from featcache.common.disk import other_name_note
from featcache.common.errors import UserError
from featcache.common.files import one_line
from featcache.tables.subset import Subset
from finetune.comparison.methods import LP_HEAD, Method, method_of
from finetune.comparison.results import Cell
from heads.exclusion import Exclusion
from heads.recipe import Recipe
from heads.runs import plain_name, read_run

#: Changes with what a cell's run is made by, so that runs of before are not taken for those of now.
_VERSION = 2
_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class Place:
    """What all cells share.

    Attributes:
        runs_dir, cache_dir: the folders of runs and caches.
        val_fraction: the share of train to choose on, where the set has no validation rows of its own.
        device: ``auto``, or a device.
        workers: threads that decode ahead; None leaves it to the data.
        command: that asked.
        exclude: rows to leave out, by id.
        record_test_curve: whether fine-tuning scores the test rows after each epoch too, for its history alone.
    """

    runs_dir: Path
    cache_dir: Path
    val_fraction: float
    device: str
    workers: int | None
    command: str
    exclude: Exclusion | None = None
    record_test_curve: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class CellPlan:
    """A cell that is to be run or found.

    Attributes:
        place: what it shares with the others.
        cache: of the features of its rows.
        method, seed, fraction: what is fitted; see `finetune.comparison.results.Cell`.
    """

    place: Place
    cache: Cache
    method: Method
    seed: int
    fraction: float

    @property
    def backbone(self) -> str:
        return str(self.cache.encoder["backbone"])

    @property
    def subset(self) -> Subset:
        """The rows of the cache that it sees; a seed's smaller shares lie in its larger ones."""
        return Subset(fraction=self.fraction if self.fraction < 1 else None, seed=self.seed)

    @property
    def recipe(self) -> Recipe:
        """How a head is chosen: with no refit, so that all methods train on the same rows."""
        assert self.method.kind == "head"
        return Recipe(clf=self.method.what, refit=False, seed=self.seed, device=_head_device(self))

    @property
    def head(self) -> CellPlan | None:
        """The cell of the head that it begins with, where it does."""
        if not self.method.needs_head:
            return None
        return CellPlan(
            place=self.place, cache=self.cache, method=method_of(LP_HEAD), seed=self.seed, fraction=self.fraction
        )

    @property
    def fingerprint(self) -> str:
        """Of all that decides its result; not of what only decides how fast."""
        head = self.head
        told: dict[str, Any] = {
            "version": _VERSION,
            "cache": self.cache.fingerprint,
            "subset": self.subset.to_json(),
            "val_fraction": self.place.val_fraction,
            "seed": self.seed,
            "method": self.method.to_json(),
            "device": self.place.device,
            "recipe": asdict(self.recipe) if self.method.kind == "head" else None,
            "head": None if head is None else head.fingerprint,
        }
        if self.place.exclude is not None:
            told["exclude"] = self.place.exclude.fingerprint
        if self.place.record_test_curve and self.method.kind == "finetune":  # a run without the curve is another
            told["test_curve"] = True
        return hashing.fingerprint(told)

    @property
    def folder(self) -> Path:
        """Of its run."""
        stem = plain_name(f"{self.cache.dataset}-{self.backbone}-{self.method.what}")
        return self.place.runs_dir / f"{stem}-{self.fingerprint[:_DIGITS]}"

    def is_finished(self) -> bool:
        """Whether its run is there, whole and readable.

        Raises:
            UserError: there is a folder of that name, with something else in it.
        """
        if not self.folder.exists():
            return False
        try:
            read_run(self.folder)
        except UserError as error:
            raise UserError(f"{one_line(error)}; remove that folder, and the cell is run anew") from error
        return True

    def check_published(self, folder: Path, on_note: Callable[[str], None]) -> None:
        """Say where its run went if another process, at work on the same cell, has published one first.

        Raises:
            UserError: what has its name is no run.
        """
        if folder.name != self.folder.name:
            on_note(other_name_note(self.folder, folder))
            self.is_finished()

    def cell(self, *, failure: str | None = None) -> Cell:
        """The cell as it came out."""
        return Cell(
            backbone=self.backbone,
            method=self.method.name,
            kind=self.method.kind,
            seed=self.seed,
            fraction=self.fraction,
            run=None if failure is not None else self.folder,
            failure=failure,
        )


def plan_cells(
    caches: Mapping[str, Sequence[tuple[Method, Cache]]],
    *,
    place: Place,
    seeds: Sequence[int],
    fractions: Sequence[float],
) -> list[CellPlan]:
    """All cells: the largest share of the rows first, then seed by seed, in each the heads before fine-tuning.

    So what is left out when a budget is spent are further seeds and smaller shares, not methods.

    Args:
        caches: the methods of each backbone, with the caches that hold their features.
        place, seeds, fractions: what all of them are run with; a method may have a fraction of its own.
    """
    planned = []
    for number, fraction in enumerate(sorted(set(fractions), reverse=True)):
        for seed in seeds:
            for kind in ("head", "finetune"):
                for methods in caches.values():
                    for method, cache in methods:
                        if method.kind != kind or (method.fraction is not None and number > 0):
                            continue
                        share = fraction if method.fraction is None else method.fraction
                        planned.append(CellPlan(place=place, cache=cache, method=method, seed=seed, fraction=share))
    return planned


def _head_device(plan: CellPlan) -> str:
    """As ``bin/fit-head`` decides: torch is asked for what it trains, and for a device that is asked for."""
    asked = plan.place.device
    if asked == "cpu" or (asked == "auto" and plan.method.what not in ("linear", "mlp")):
        return asked
    from featcache.common.machine import choose_device

    return str(choose_device(asked))
