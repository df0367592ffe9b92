"""What a comparison came to, as values that go to JSON: its cells, table, differences and verdict.

Accuracies, differences and shares are on the scale 0..1, times in seconds, memory in units of 10^6 bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

#: Version of the keys in ``comparison.json``.
SCHEMA = 2

#: What the failure of a cell that was not begun starts with.
LEFT_OUT = "left out: "

#: A gain that matters, one percentage point: only an interval that ends below it shows that there is none.
MARGIN = 0.01

Interval = tuple[float, float]
Kind = Literal["head", "finetune"]
Outcome = Literal["gain", "loss", "no gain", "undecided"]


def largest_common_fraction(trained: Iterable[tuple[Kind, float]]) -> float:
    """The largest share of the training rows on which both heads and fine-tuning were trained.

    Without a share that both have it is the heads' largest, without heads that of fine-tuning, and 1.0 without either.

    Args:
        trained: the kind and the share of what may be compared.
    """
    fractions: dict[Kind, set[float]] = {"head": set(), "finetune": set()}
    for kind, fraction in trained:
        fractions[kind].add(fraction)
    heads, tuned = fractions["head"], fractions["finetune"]
    return max(heads & tuned or heads or tuned, default=1.0)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a comparison, or what became of it.

    Attributes:
        backbone: its name.
        method: its name in the table: that of a head (logreg), of a plan (partial:layer4), or what a recipe calls it.
        kind: a head on cached features, or fine-tuning.
        seed: of the validation rows, the training rows where there are fewer than all, and all else that is random.
        fraction: of the training rows, 1.0 for all.
        run: the folder of the finished run (``run.json``, ``predictions.npz``, see `heads.runs.read_run`), or None.
        failure: why there is none, in one line, or None.
    """

    backbone: str
    method: str
    kind: Kind
    seed: int
    fraction: float
    run: Path | None
    failure: str | None = None


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """The seeds of one backbone, method and share of the training rows together.

    All but the first six are None where no seed has a finished run.

    Attributes:
        backbone, method, kind, fraction: as in `Cell`.
        n_seeds, n_failed: finished runs, and cells without one.
        n_train: rows that the final model was fitted on, without those that validate.
        n_test: rows that were scored.
        trainable_params, total_params: of the model with its head.
        accuracy: on test rows, the mean over seeds.
        accuracy_ci95: over images: Wilson's interval of that mean as a share of the test rows, which more seeds do not
            make shorter.
        seed_spread: the lowest and the highest accuracy of a seed.
        val_accuracy: the mean over seeds of what choices were made by.
        train_accuracy: on the rows that were fitted, the mean over seeds.
        gap: train_accuracy - accuracy.
        test_loss: log loss in nats, the mean over seeds; None for heads without probabilities.
        embed_s: what the cached features or maps took to make.
        fit_s: fitting with the whole search for hyper-parameters or rates, the mean over seeds.
        epoch_s: one epoch, the mean over seeds; None for heads that have none.
        peak_rss_mb: the most memory of the process while it fitted, the highest of the seeds.
        disk_bytes: the cache of features or maps, and one model.
        params: what was chosen, of the first seed.
        notes: sentences on what does not compare: failed seeds, other rows, other preprocessing, augmentation.
        comparable: whether it has the test rows that the others have, and the training and validation rows that others
            of its fraction have; else it is in no difference. Those of a smaller fraction than the one compared are
            comparable, among themselves.
    """

    backbone: str
    method: str
    kind: Kind
    fraction: float
    n_seeds: int
    n_failed: int
    n_train: int | None = None
    n_test: int | None = None
    trainable_params: int | None = None
    total_params: int | None = None
    accuracy: float | None = None
    accuracy_ci95: Interval | None = None
    seed_spread: Interval | None = None
    val_accuracy: float | None = None
    train_accuracy: float | None = None
    gap: float | None = None
    test_loss: float | None = None
    embed_s: float | None = None
    fit_s: float | None = None
    epoch_s: float | None = None
    peak_rss_mb: float | None = None
    disk_bytes: int | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    comparable: bool = True


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A method's test accuracy less the reference's, on the same images and seeds.

    Attributes:
        backbone, method, kind: what is compared.
        against_backbone, against: the reference: the cached head of the highest validation accuracy.
        difference: mean over seeds, -1..1.
        ci95: its interval; over images, and over seeds where there are several.
        n_seeds: that both have.
        mcnemar_p: the exact p-value of McNemar's test on the first seed.
        p: the p-value that decides: mcnemar_p with one seed, else over images and seeds.
        holm_p: p adjusted for the number of methods of this kind that are compared.
        significant: whether holm_p is below 0.05. A difference that is not significant may still be a real one.
    """

    backbone: str
    method: str
    kind: Kind
    against_backbone: str
    against: str
    difference: float
    ci95: Interval
    n_seeds: int
    mcnemar_p: float
    p: float
    holm_p: float
    significant: bool

    @property
    def outcome(self) -> str:
        """What tables say of it."""
        if not self.significant:
            return "no significant difference"
        return "better" if self.difference > 0 else "worse"


@dataclass(frozen=True, kw_only=True)
class Overtaking:
    """From how many training rows on fine-tuning is ahead of the head.

    Attributes:
        rows: interpolated on a logarithmic scale; None where the curves do not cross within the sizes that were run.
        low, high: its 95 % interval by resampling images and seeds; None where that end lies outside these sizes.
        smallest, largest: the sizes that were run.
        told: all of it in a sentence.
    """

    rows: float | None
    low: float | None
    high: float | None
    smallest: int
    largest: int
    told: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the numbers come to.

    Attributes:
        sentences: two or three, for the user, and one more that names methods that were not compared.
        best_head, best_tuned: method names, chosen by validation accuracy, with ``_backbone`` beside them; None where
            there is none.
        gain: test accuracy of the best tuned method less that of the best head; gain_ci95, and gain_holm_p adjusted for
            the number of tuned methods.
        beyond_chance: whether fine-tuning gains: gain above 0 and gain_holm_p below 0.05. None without both kinds.
        outcome: "gain" if beyond_chance; "loss" if gain is below 0 and gain_holm_p below 0.05; else "no gain" if
            gain_ci95 ends below `MARGIN`, and "undecided" if it does not. None without both kinds.
        extra_minutes: that the best tuned method takes beyond the best head, embedding and search included, a seed.
        points_per_minute: percentage points of gain for each of them; None where it takes none.
        overtakes: from the learning curves; None where fewer than two sizes were run.
        rule_of_thumb: which strategy the number of training rows suggests: features, partial or full.
        follows_rule: whether the data set follows it; None where the methods that it takes were not run, and where the
            intervals leave it undecided.
    """

    sentences: tuple[str, ...]
    best_head: str | None = None
    best_head_backbone: str | None = None
    best_tuned: str | None = None
    best_tuned_backbone: str | None = None
    gain: float | None = None
    gain_ci95: Interval | None = None
    gain_holm_p: float | None = None
    beyond_chance: bool | None = None
    outcome: Outcome | None = None
    extra_minutes: float | None = None
    points_per_minute: float | None = None
    overtakes: Overtaking | None = None
    rule_of_thumb: str | None = None
    follows_rule: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A whole comparison.

    Attributes:
        name: what it is called.
        folder: where it and its report are kept.
        dataset: as in ``run.json``: name, class_names, n_train, n_val, n_test and more.
        encoders: as in ``run.json``, by backbone.
        settings: what was asked for: methods, seeds, fractions, trials, recipe and more, as JSON.
        cells: in the order in which they were asked for.
        table, differences, verdict: drawn from them.
        report: ``report.html``, or None where none was written.
    """

    name: str
    folder: Path
    dataset: Mapping[str, Any]
    encoders: Mapping[str, Any]
    settings: Mapping[str, Any]
    cells: tuple[Cell, ...]
    table: tuple[TableRow, ...]
    differences: tuple[Difference, ...]
    verdict: Verdict
    report: Path | None = None

    @property
    def compared_fraction(self) -> float:
        """The share of the training rows that differences and verdict are of."""
        return largest_common_fraction((row.kind, row.fraction) for row in self.table if row.comparable)

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        told: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str, allow_nan=False))
        return {"schema": SCHEMA, **told}
