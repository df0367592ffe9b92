"""Groups of finished cells in; each method against the best cached head, on the same images and seeds, out."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.comparison.groups import Group, UsualRows, at_largest_common_fraction, common_seeds
from finetune.comparison.results import Difference
from heads.evidence.paired import holm
from heads.evidence.paired_seeds import seeds_difference

LEVEL = 0.05


def best_by_validation(groups: Sequence[Group], kind: str) -> Group | None:
    """The one of a kind with the highest validation accuracy, of equals the first; test decides nothing here.

    Heads whose validation accuracy is that of their best epoch do not count.
    """
    own = [each for each in groups if each.kind == kind]
    fair = [each for each in own if kind != "head" or not each.val_is_of_best_epoch]
    return max(fair, key=lambda each: each.val_accuracy, default=None)


def reference_of(groups: Sequence[Group]) -> Group | None:
    """The head that all are compared with: of those compared the one with the highest validation accuracy."""
    return best_by_validation(at_largest_common_fraction(groups), "head")


def not_compared(groups: Sequence[Group]) -> dict[Group, str]:
    """The groups whose method is in no difference though it has finished runs, and why.

    Smaller shares of the rows of a method that is compared are not among them.
    """
    usual, compared, reference = UsualRows.of(groups), at_largest_common_fraction(groups), reference_of(groups)
    methods = {(each.backbone, each.method) for each in compared}
    reasons = {}
    for each in groups:
        if not each.runs:
            continue
        if deviation := usual.deviation(each):
            reasons[each] = deviation
        elif (each.backbone, each.method) not in methods:
            reasons[each] = f"trained on {_training_rows(each)}, not on {_training_rows(compared[0])}"
        elif each in compared and reference is not None and not common_seeds(each, reference):
            reasons[each] = f"no seed in common with {reference.method} ({reference.backbone})"
    return reasons


def differences_of(groups: Sequence[Group]) -> tuple[Difference, ...]:
    """Every method against the head of highest validation accuracy; none where there is no head.

    Only methods are compared that were trained on the same rows as that head (`at_largest_common_fraction`) and have a
    seed in common with it.

    Holm's adjustment is over the heads, and over the fine-tuning methods apart: which head, and whether fine-tuning
    gains, are two questions.
    """
    compared, reference = at_largest_common_fraction(groups), reference_of(groups)
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
            significant=adjusted[each] < LEVEL,
        )
        for each, difference in found.items()
    )


def _training_rows(each: Group) -> str:
    return f"{each.n_train:,} rows ({100 * each.fraction:g} %)"
