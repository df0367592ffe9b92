"""Groups and their differences in; whether fine-tuning is worth it, in sentences and numbers, out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune.comparison.differences import LEVEL, best_by_validation, candidates
from finetune.comparison.groups import Group
from finetune.comparison.overtaking import overtaking_of
from finetune.comparison.results import Difference, Overtaking, Verdict
from heads.evidence.metrics import wilson

#: Up to these many training images the rules of thumb take features, and a part of the backbone.
FEATURES_BELOW, PARTIAL_UP_TO = 1_000, 10_000

_RULES = {
    "features": "fewer than 1,000 images: features",
    "partial": "1,000 to 10,000 images: a part of the backbone",
    "full": "more than 10,000 images, of another domain: all of it",
}


def verdict_of(groups: Sequence[Group], differences: Sequence[Difference]) -> Verdict:
    """What the numbers come to.

    The best head and the best tuned method are those of highest validation accuracy, so that their difference on test
    rows is not that of the luckiest. It counts as a gain where it is above 0 and its p-value, adjusted by Holm for all
    tuned methods, is below 0.05. The head alone, trained by epochs, is no fine-tuning.
    """
    compared = candidates(groups)
    head = best_by_validation(compared, "head")
    tuned = best_by_validation([each for each in compared if each.strategy != "features"], "finetune")
    if head is None:
        return Verdict(sentences=("No cached head is there to compare with: add one to --methods, such as logreg.",))
    first = _told_head(head)
    names: dict[str, Any] = {"best_head": head.method, "best_head_backbone": head.backbone}
    gain = None if tuned is None else _difference(differences, tuned)
    if tuned is None or gain is None:
        return Verdict(
            sentences=(first, "Nothing was fine-tuned on the same rows, so there is no more to say."), **names
        )
    beyond_chance = gain.difference > 0 and gain.holm_p < LEVEL
    minutes = (_seconds(tuned) - _seconds(head)) / 60
    per_minute = 100 * gain.difference / minutes if minutes > 0 else None
    overtakes = overtaking_of(groups, head, tuned)
    rule = rule_of_thumb(head.n_train)
    follows = _follows(rule, compared, differences)
    return Verdict(
        sentences=(
            first,
            _told_gain(tuned, gain, beyond_chance, minutes, per_minute, differences),
            _told_rule(rule, follows, head.n_train, overtakes),
        ),
        **names,
        best_tuned=tuned.method,
        best_tuned_backbone=tuned.backbone,
        gain=gain.difference,
        gain_ci95=gain.ci95,
        gain_holm_p=gain.holm_p,
        beyond_chance=beyond_chance,
        extra_minutes=minutes,
        points_per_minute=per_minute,
        overtakes=overtakes,
        rule_of_thumb=rule,
        follows_rule=follows,
    )


def rule_of_thumb(n_train: int) -> str:
    """Which strategy the rules of thumb take for so many training images: features, partial or full."""
    return "features" if n_train < FEATURES_BELOW else "partial" if n_train <= PARTIAL_UP_TO else "full"


def _difference(differences: Sequence[Difference], each: Group) -> Difference | None:
    return next((d for d in differences if (d.backbone, d.method) == (each.backbone, each.method)), None)


def _gains(differences: Sequence[Difference], each: Group) -> bool:
    found = _difference(differences, each)
    return found is not None and found.difference > 0 and not found.tie


def _follows(rule: str, compared: Sequence[Group], differences: Sequence[Difference]) -> bool | None:
    """Features: nothing tuned gains beyond chance. Else: something of that strategy does. None where none was run."""
    tuned = [each for each in compared if each.kind == "finetune" and each.strategy != "features"]
    if rule == "features":
        return not any(_gains(differences, each) for each in tuned) if tuned else None
    own = [each for each in tuned if each.strategy == rule]
    return any(_gains(differences, each) for each in own) if own else None


def _seconds(each: Group) -> float:
    """Of embedding and fitting, search included, a seed."""
    return (each.mean_cost("embed_s") or 0.0) + (each.mean_cost("fit_s") or 0.0)


def _name(each: Group) -> str:
    return f"{each.method} ({each.backbone})"


def _told_head(head: Group) -> str:
    accuracy, n_test = head.accuracy, len(next(iter(head.runs.values())).hits)
    low, high = wilson(round(accuracy * n_test), n_test)
    over = f", mean of {len(head.runs)} seeds" if len(head.runs) > 1 else ""
    return (
        f"The best cheap choice is {_name(head)}: {accuracy:.4f} of {n_test:,} test images right ({low:.4f} to "
        f"{high:.4f}{over}), in {_time(_seconds(head))} with embedding."
    )


def _told_gain(
    tuned: Group,
    gain: Difference,
    beyond_chance: bool,
    minutes: float,
    per_minute: float | None,
    differences: Sequence[Difference],
) -> str:
    n_tuned = sum(each.kind == "finetune" for each in differences)
    among = f", Holm's over {n_tuned} methods" if n_tuned > 1 else ""
    numbers = (
        f"{100 * gain.difference:+.2f} points ({100 * gain.ci95[0]:+.2f} to {100 * gain.ci95[1]:+.2f}; p "
        f"{gain.holm_p:.2g}{among})"
    )
    longer = f"for {_time(60 * minutes)} more" if minutes > 0 else "in no more time"
    if beyond_chance:
        rate = f", {per_minute:.2g} points for each of these minutes" if per_minute is not None else ""
        return f"Fine-tuning gains beyond chance: {_name(tuned)}, the best on validation, by {numbers} {longer}{rate}."
    if gain.tie:
        return f"Fine-tuning does not gain beyond chance: {_name(tuned)}, the best on validation: {numbers} {longer}."
    return f"Fine-tuning loses: {_name(tuned)}, the best on validation: {numbers} {longer}."


def _told_rule(rule: str, follows: bool | None, n_train: int, overtakes: Overtaking | None) -> str:
    held = {True: "holds here", False: "does not hold here", None: "was not put to the test"}[follows]
    told = f"the rule of thumb for {n_train:,} training images ({_RULES[rule]}) {held}"
    if overtakes is not None:
        return f"{overtakes.told[0].upper()}{overtakes.told[1:]}; {told}."
    return f"{told[0].upper()}{told[1:]}."


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} minutes"
