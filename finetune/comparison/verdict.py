"""Groups and their differences in; whether fine-tuning is worth it, in sentences and numbers, out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune.comparison.differences import best_by_validation, not_compared, reference_of
from finetune.comparison.groups import Group, at_largest_common_fraction, comparable
from finetune.comparison.overtaking import overtaking_of, two_digits
from finetune.comparison.results import MARGIN, Difference, Outcome, Overtaking, Verdict
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
    tuned methods, is below 0.05. A difference that is not significant counts as "no gain" only where its interval
    excludes a gain of one point (an equivalence test with that margin: Lakens 2017, Social Psychological and
    Personality Science 8), else it is undecided. The head alone, trained by epochs, is no fine-tuning.
    """
    compared, head = at_largest_common_fraction(groups), reference_of(groups)
    left_out = _left_out_sentence(groups)
    if head is None:
        why = "No cached head is there to compare with: add one to --methods, such as logreg."
        if any(each.kind == "head" and each.runs for each in groups):
            why = (
                "No cached head can be compared with: none was trained and tested on the rows of the others and has a "
                "validation accuracy that is not its best epoch's. Add one to --methods, such as logreg."
            )
        return Verdict(sentences=(why, *left_out))
    first = _told_head(head, _fraction_told(groups, head))
    names: dict[str, Any] = {"best_head": head.method, "best_head_backbone": head.backbone}
    trained = [
        (each, difference)
        for each in compared
        if each.kind == "finetune"
        and each.strategy != "features"
        and (difference := _difference(differences, each)) is not None
    ]
    tuned = best_by_validation([each for each, _ in trained], "finetune")
    if tuned is None:
        nothing = "Nothing was fine-tuned on the same rows, so there is no more to say."
        return Verdict(sentences=(first, nothing, *left_out), **names)
    gain = next(difference for each, difference in trained if each is tuned)
    outcome = outcome_of(gain)
    minutes = (_seconds(tuned) - _seconds(head)) / 60
    per_minute = 100 * gain.difference / minutes if minutes > 0 else None
    overtakes = overtaking_of(groups, head, tuned)
    rule = rule_of_thumb(head.n_train)
    put_to_test = [outcome_of(each) for group, each in trained if rule in ("features", group.strategy)]
    follows = _follows(rule, put_to_test)
    return Verdict(
        sentences=(
            first,
            _told_gain(head, tuned, gain, minutes, per_minute, differences),
            _told_rule(rule, follows, bool(put_to_test), head.n_train, overtakes),
            *left_out,
        ),
        **names,
        best_tuned=tuned.method,
        best_tuned_backbone=tuned.backbone,
        gain=gain.difference,
        gain_ci95=gain.ci95,
        gain_holm_p=gain.holm_p,
        beyond_chance=outcome == "gain",
        outcome=outcome,
        extra_minutes=minutes,
        points_per_minute=per_minute,
        overtakes=overtakes,
        rule_of_thumb=rule,
        follows_rule=follows,
    )


def rule_of_thumb(n_train: int) -> str:
    """Which strategy the rules of thumb take for so many training images: features, partial or full."""
    return "features" if n_train < FEATURES_BELOW else "partial" if n_train <= PARTIAL_UP_TO else "full"


def outcome_of(difference: Difference) -> Outcome:
    """What a method's difference from the head shows; see `finetune.comparison.results.Verdict`."""
    if difference.significant:
        return "gain" if difference.difference > 0 else "loss"
    return "no gain" if difference.ci95[1] < MARGIN else "undecided"


def _difference(differences: Sequence[Difference], each: Group) -> Difference | None:
    return next((d for d in differences if (d.backbone, d.method) == (each.backbone, each.method)), None)


def _follows(rule: str, outcomes: Sequence[Outcome]) -> bool | None:
    """Whether the outcomes of what was put to the test bear the rule out.

    For features no method may gain, and each has to exclude a gain of one point; for the others one method has to gain,
    and the rule is refuted once each excludes it. None where they leave it open, and where there are none.
    """
    if "gain" in outcomes:
        return rule != "features"
    if not outcomes or "undecided" in outcomes:
        return None
    return rule == "features"


def _left_out_sentence(groups: Sequence[Group]) -> tuple[str, ...]:
    """The methods that have runs and are in no difference, each once, with the reason; nothing without any."""
    reasons: dict[str, str] = {}
    for each, reason in not_compared(groups).items():
        reasons.setdefault(_name(each), reason)
    told = "; ".join(f"{name}, {reason}" for name, reason in reasons.items())
    return (f"Not compared: {told}.",) if told else ()


def _fraction_told(groups: Sequence[Group], head: Group) -> str:
    """Which share of the rows is compared, where some have more of them; else nothing."""
    if head.fraction == max(each.fraction for each in comparable(groups)):
        return ""
    tuned = any(each.kind == "finetune" for each in at_largest_common_fraction(groups))
    who = "heads and fine-tuning both have" if tuned else "heads have"
    return f"{head.n_train:,} training rows ({100 * head.fraction:g} %), the most that {who}"


def _seconds(each: Group) -> float:
    """Of embedding and fitting, search included, a seed."""
    return (each.mean_cost("embed_s") or 0.0) + (each.mean_cost("fit_s") or 0.0)


def _name(each: Group) -> str:
    return f"{each.method} ({each.backbone})"


def _n_test(each: Group) -> int:
    return len(next(iter(each.runs.values())).hits)


def _told_head(head: Group, fraction: str) -> str:
    accuracy, n_test = head.accuracy, _n_test(head)
    low, high = wilson(round(accuracy * n_test), n_test)
    over = f", mean of {len(head.runs)} seeds" if len(head.runs) > 1 else ""
    begin = f"With {fraction}, the" if fraction else "The"
    return (
        f"{begin} best cheap choice is {_name(head)}: {accuracy:.4f} of {n_test:,} test images right ({low:.4f} to "
        f"{high:.4f}{over}), in {_time(_seconds(head))} with embedding."
    )


def _told_gain(
    head: Group,
    tuned: Group,
    gain: Difference,
    minutes: float,
    per_minute: float | None,
    differences: Sequence[Difference],
) -> str:
    n_tuned = sum(each.kind == "finetune" for each in differences)
    among = f", Holm's over {n_tuned} methods" if n_tuned > 1 else ""
    fewer = gain.n_seeds < max(len(head.runs), len(tuned.runs))
    seeds = f", over the {gain.n_seeds} seed{'s' if gain.n_seeds > 1 else ''} that both have" if fewer else ""
    numbers = (
        f"{100 * gain.difference:+.2f} points ({100 * gain.ci95[0]:+.2f} to {100 * gain.ci95[1]:+.2f}; p "
        f"{gain.holm_p:.2g}{among}{seeds})"
    )
    longer = f"for {_time(60 * minutes)} more" if minutes > 0 else "in no more time"
    best = f"{_name(tuned)}, the best on validation"
    outcome = outcome_of(gain)
    if outcome == "gain":
        rate = f", {per_minute:.2g} points for each of these minutes" if per_minute is not None else ""
        return f"Fine-tuning gains beyond chance: {best}, by {numbers} {longer}{rate}."
    if outcome == "loss":
        return f"Fine-tuning loses: {best}: {numbers} {longer}."
    if outcome == "no gain":
        return (
            f"Fine-tuning does not gain one point: {best}, differs by {numbers} {longer}: the interval ends below +1."
        )
    return f"Undecided whether fine-tuning gains: {best}, differs by {numbers} {longer}; {_open(gain, _n_test(head))}."


def _open(gain: Difference, n_test: int) -> str:
    """Why an undecided difference is, and, with one seed, how many test rows an interval of one point would take.

    Its width falls with the root of their number, as long as the two methods disagree on the same share of them. Over
    several seeds it does not, so that no number is given.
    """
    low, high = gain.ci95
    if low > 0:
        return "the interval lies above 0, but p is not below 0.05"
    told = "the interval holds both 0 and a gain of one point"
    if gain.n_seeds > 1:
        return told
    enough = two_digits(n_test * ((high - low) / MARGIN) ** 2)
    return f"{told}; with about {enough} test images it would be too short for both"


def _told_rule(rule: str, follows: bool | None, put_to_test: bool, n_train: int, overtakes: Overtaking | None) -> str:
    unknown = "is undecided here" if put_to_test else "was not put to the test"
    held = unknown if follows is None else "holds here" if follows else "does not hold here"
    told = f"the rule of thumb for {n_train:,} training images ({_RULES[rule]}) {held}"
    if overtakes is not None:
        return f"{overtakes.told[0].upper()}{overtakes.told[1:]}; {told}."
    return f"{told[0].upper()}{told[1:]}."


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} minutes"
