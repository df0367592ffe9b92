"""Groups of finished cells in; each method against the best cached head, on the same images and seeds, out."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.comparison.groups import Group, common_seeds, comparable, shared_test_rows
from finetune.comparison.results import Difference
from heads.evidence.paired import holm
from heads.evidence.paired_seeds import seeds_difference

LEVEL = 0.05


def candidates(groups: Sequence[Group]) -> list[Group]:
    """What is compared: of each backbone and method the largest share of the rows, on the test rows that most have."""
    test_rows = shared_test_rows(groups)
    largest: dict[tuple[str, str], Group] = {}
    for each in groups:
        if not comparable(each, test_rows):
            continue
        key = each.backbone, each.method
        if key not in largest or each.fraction > largest[key].fraction:
            largest[key] = each
    return list(largest.values())


def best_by_validation(groups: Sequence[Group], kind: str) -> Group | None:
    """The one of a kind with the highest validation accuracy, of equals the first; test decides nothing here.

    Heads whose validation accuracy is that of their best epoch count only if there are no others.
    """
    own = [each for each in groups if each.kind == kind]
    fair = [each for each in own if kind != "head" or not each.val_is_of_best_epoch]
    return max(fair or own, key=lambda each: each.val_accuracy, default=None)


def differences_of(groups: Sequence[Group]) -> tuple[Difference, ...]:
    """Every method against the head of highest validation accuracy; none where there is no head.

    Holm's adjustment is over the heads, and over the fine-tuning methods apart: which head, and whether fine-tuning
    gains, are two questions.
    """
    compared = candidates(groups)
    reference = best_by_validation(compared, "head")
    if reference is None:
        return ()
    found = {}
    for each in compared:
        seeds = common_seeds(each, reference)
        if each is not reference and seeds:
            found[each] = seeds_difference(each.hits(seeds), reference.hits(seeds))
    adjusted: dict[Group, float] = {}
    for kind in ("head", "finetune"):
        own = [each for each in found if each.kind == kind]
        adjusted |= dict(zip(own, holm([found[each].p_value for each in own]), strict=True))
    return tuple(
        Difference(
            backbone=each.backbone,
            method=each.method,
            kind=each.kind,
            against_backbone=reference.backbone,
            against=reference.method,
            difference=difference.difference,
            ci95=difference.ci95,
            n_seeds=difference.n_seeds,
            mcnemar_p=difference.mcnemar_p,
            p=difference.p_value,
            holm_p=adjusted[each],
            tie=adjusted[each] >= LEVEL,
        )
        for each, difference in found.items()
    )
