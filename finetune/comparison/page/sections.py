"""What a comparison and its runs show in; the sections of its page out, each with its table, pictures and words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune.comparison.page import words
from finetune.comparison.page.tables import PageTable, differences_table, results_table
from finetune.comparison.results import Comparison, Outcome

if TYPE_CHECKING:
    from finetune.comparison.page.gallery import Sampled, Thumbnail
    from finetune.comparison.page.style import Picture

#: What the page says of the verdict's outcome beside the gain.
_OUTCOMES: Mapping[Outcome, str] = {
    "gain": "beyond chance",
    "loss": "a loss beyond chance",
    "no gain": "less than one point",
    "undecided": "undecided",
}
_CHOSEN = "A choice was made by validation accuracy alone; test images were scored once, at the end."


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page; what it lacks is left out."""

    id: str
    title: str
    lead: str = ""
    setup: tuple[tuple[str, str], ...] = ()
    table: PageTable | None = None
    notes: tuple[tuple[str, str], ...] = ()
    failed: tuple[tuple[str, str], ...] = ()
    pictures: tuple[Picture, ...] = ()
    classes: tuple[Sampled, ...] = ()
    mistakes: tuple[tuple[str, Sequence[Thumbnail]], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A number that the top of the page shows."""

    name: str
    number: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What was drawn, by section, and why the rest was not."""

    outcome: tuple[Picture, ...] = ()
    differences: tuple[Picture, ...] = ()
    cost: tuple[Picture, ...] = ()
    size: tuple[Picture, ...] = ()
    training: tuple[Picture, ...] = ()
    choices: tuple[Picture, ...] = ()
    confusions: tuple[Picture, ...] = ()
    maps: tuple[Picture, ...] = ()
    classes: tuple[Sampled, ...] = ()
    mistakes: tuple[tuple[str, Sequence[Thumbnail]], ...] = ()
    lacking: tuple[tuple[str, str], ...] = ()

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All of them, in the order of the page."""
        return (
            *self.outcome, *self.cost, *self.differences, *self.size, *self.training, *self.choices, *self.confusions,
            *self.maps,
        )  # fmt: skip


def facts_of(comparison: Comparison) -> list[Fact]:
    """The numbers that the verdict is about."""
    verdict, facts = comparison.verdict, []
    best = (
        ("Best cached head", verdict.best_head, verdict.best_head_backbone),
        ("Best fine-tuning", verdict.best_tuned, verdict.best_tuned_backbone),
    )
    fraction = comparison.compared_fraction
    for name, method, backbone in best:
        for row in comparison.table:
            if (row.method, row.backbone, row.fraction) == (method, backbone, fraction) and row.accuracy is not None:
                detail = f"{method}, 95 % interval {words.interval(row.accuracy_ci95)}"
                facts.append(Fact(name=name, number=words.accuracy(row.accuracy), detail=detail))
    if verdict.gain is not None:
        ends = "" if verdict.gain_ci95 is None else f"{words.points_interval(verdict.gain_ci95)}, "
        number = f"{words.points(verdict.gain)} points"
        detail = f"{ends}{_OUTCOMES[verdict.outcome or 'undecided']}"
        facts.append(Fact(name="Gain of fine-tuning", number=number, detail=detail))
    if verdict.extra_minutes is not None:
        rate = verdict.points_per_minute if verdict.outcome == "gain" else None
        detail = "beyond the head, search included" if rate is None else f"{rate:+.2g} points for each minute"
        sign = "−" if verdict.extra_minutes < 0 else ""
        number = sign + words.duration(60 * abs(verdict.extra_minutes))
        facts.append(Fact(name="Extra time", number=number, detail=detail.replace("-", "−")))
    return facts


def sections_of(comparison: Comparison, shown: Shown) -> list[Section]:
    """The sections that have anything to show, in order."""
    overtakes = comparison.verdict.overtakes
    failed = [(_told(cell), cell.failure or "no run") for cell in comparison.cells if cell.run is None]
    sections = [
        Section(id="setup", title="What was compared", lead=_CHOSEN, setup=tuple(_setup(comparison))),
        Section(
            id="results",
            title="Results",
            table=results_table(comparison) if comparison.table else None,
            notes=tuple((_told(row), note) for row in comparison.table for note in row.notes),
            failed=tuple(failed),
            pictures=(*shown.outcome, *shown.cost),
        ),
        Section(
            id="differences",
            title="Against the best head",
            table=differences_table(comparison) if comparison.differences else None,
            pictures=shown.differences,
        ),
        Section(
            id="size",
            title="How much data",
            lead=overtakes.told if overtakes else "",
            pictures=shown.size,
        ),
        Section(id="training", title="Training", pictures=shown.training),
        Section(id="choices", title="Choices made on validation", pictures=shown.choices),
        Section(id="mistakes", title="Mistakes", pictures=shown.confusions, mistakes=shown.mistakes),
        Section(
            id="images",
            title="Images and their embedding",
            lead="Test images, resized and cropped as the network sees them." if shown.classes else "",
            classes=shown.classes,
            pictures=shown.maps,
        ),
        Section(id="lacking", title="What is not shown", notes=shown.lacking),
    ]
    return [
        each
        for each in sections
        if each.setup or each.table or each.notes or each.failed or each.pictures or each.classes or each.mistakes
    ]


def _setup(comparison: Comparison) -> list[tuple[str, str]]:
    dataset = comparison.dataset
    names = [str(name) for name in dataset.get("class_names", ())]
    told = [("Data set", str(dataset.get("name", comparison.name)))]
    if names:
        shown = ", ".join(words.short(name) for name in names[:8]) + (" …" if len(names) > 8 else "")
        told.append(("Classes", f"{len(names)}: {shown}"))
    rows = [f"{dataset[key]:,} {what}" for key, what in _ROWS if isinstance(dataset.get(key), int)]
    if rows:
        told.append(("Images", ", ".join(rows)))
    told += [("Backbone", _encoder_told(name, encoder)) for name, encoder in comparison.encoders.items()]
    methods = list(dict.fromkeys(row.method for row in comparison.table))
    seeds = sorted({cell.seed for cell in comparison.cells})
    shares = sorted({cell.fraction for cell in comparison.cells})
    told += [("Methods", ", ".join(methods)), ("Seeds", ", ".join(map(str, seeds)))]
    if shares != [1.0]:
        told.append(("Shares of the training images", ", ".join(f"{share:.0%}" for share in shares)))
    return told + [
        (name, _setting_told(comparison.settings[key]))
        for key, name in _SETTINGS
        if comparison.settings.get(key) not in (None, "", [], {}, ())
    ]


#: Of the settings that a comparison tells, those that the rest does not say already.
_SETTINGS = (
    ("recipe", "Recipe"),
    ("about", "What it asks"),
    ("trials", "Learning rates tried by each fine-tuning"),
    ("rows", "Rows"),
    ("command", "Command"),
)
_ROWS = (("n_train", "to train"), ("n_val", "to validate"), ("n_test", "to test"))


def _encoder_told(name: str, encoder: Mapping[str, Any]) -> str:
    preprocessing, weights = encoder.get("preprocessing"), encoder.get("weights")
    size = preprocessing.get("image_size") if isinstance(preprocessing, dict) else None
    drawn = "random weights" if isinstance(weights, dict) and "seed" in weights else ""
    parts = (drawn, f"{size} px" if size else "", str(encoder.get("precision", "")))
    return ", ".join([name, *(part for part in parts if part)])


def _setting_told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_setting_told(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_setting_told(each) for each in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _told(row: Any) -> str:
    """What a row or a cell of the comparison is called in a list."""
    seed = f", seed {row.seed}" if hasattr(row, "seed") else ""
    share = "" if row.fraction == 1.0 else f", {row.fraction:.0%} of the training images"
    return f"{row.method}, {row.backbone}{share}{seed}"
