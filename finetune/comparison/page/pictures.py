"""A comparison in; its finished runs read, and all that can be drawn of them, out. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featcache.cache.cache_file import Cache
from featcache.common.errors import UserError
from finetune.comparison.page.choice_charts import (
    confusion_picture,
    range_test_picture,
    selection_picture,
    trials_picture,
)
from finetune.comparison.page.drawn_runs import Best, FinishedRuns, read_finished, tried_rates
from finetune.comparison.page.embedding_map import Projection, check_projection, map_picture
from finetune.comparison.page.gallery import Sampled, TestImages, Thumbnail, confident_mistakes, samples
from finetune.comparison.page.outcome_charts import (
    accuracy_picture,
    cost_picture,
    difference_picture,
    loss_picture,
    size_picture,
)
from finetune.comparison.page.points import Point, at_fraction, method_numbers, points_of
from finetune.comparison.page.sections import Shown
from finetune.comparison.page.style import Picture
from finetune.comparison.page.training_charts import training_pictures
from finetune.comparison.results import Comparison
from heads.runs import plain_name


def draw_all(comparison: Comparison, *, cache_dir: Path | None, projection: Projection) -> Shown:
    """Draw what the comparison and its runs hold; what is lacking is named, with the reason.

    Args:
        comparison: whose cells name the runs.
        cache_dir: where the caches lie that the runs come from, if they are at hand.
        projection: of the map of the embedding.

    Raises:
        UserError: the projection is unknown or not installed.
    """
    check_projection(projection)
    runs, points, numbers = read_finished(comparison), points_of(comparison), method_numbers(comparison)
    backbones = list(dict.fromkeys(row.backbone for row in comparison.table))
    suffixes = {name: f"-{plain_name(name)}" if len(backbones) > 1 else "" for name in backbones}
    costs, sizes, training, choices = [], [], [], _selection(runs)
    for backbone, suffix in suffixes.items():
        mine = [point for point in points if point.backbone == backbone]
        compared = at_fraction(mine, comparison.compared_fraction)
        costs += [cost_picture(compared, suffix=suffix)] if compared else []
        sizes += [size_picture(mine, suffix=suffix)] if len({point.n_train for point in mine}) > 1 else []
        records = runs.tuned_records(backbone)
        histories = {method: [record["history"] for record in each] for method, each in records.items()}
        training += training_pictures(histories, numbers, suffix=suffix)
        tried = {method: rates for method, each in records.items() if (rates := tried_rates(each[0]))}
        choices += [trials_picture(tried, numbers, suffix=suffix)] if tried else []
        tests = {method: test for method, each in records.items() if (test := each[0].get("range_test"))}
        choices += [range_test_picture(tests, numbers, suffix=suffix)] if tests else []
    both = [(kind, best) for kind, best in (("head", runs.head), ("tuned", runs.tuned)) if best]
    shown = _of_images([best for _, best in both], cache_dir, projection)
    return Shown(
        outcome=_outcome(at_fraction(points, comparison.compared_fraction)),
        differences=(difference_picture(comparison.differences, numbers),) if comparison.differences else (),
        cost=tuple(costs),
        size=tuple(sizes),
        training=tuple(training),
        choices=tuple(choices),
        confusions=tuple(
            confusion_picture(best.run, name=f"confusions-{kind}", method=best.name) for kind, best in both
        ),
        maps=shown.maps,
        classes=shown.classes,
        mistakes=shown.mistakes,
        lacking=(*runs.unread, *shown.lacking),
    )


def _outcome(points: Sequence[Point]) -> tuple[Picture, ...]:
    if not points:
        return ()
    loss = loss_picture(points)
    return (accuracy_picture(points), *([loss] if loss else []))


def _selection(runs: FinishedRuns) -> list[Picture]:
    drawn = selection_picture(runs.head.run, method=runs.head.name) if runs.head else None
    return [drawn] if drawn else []


def _of_images(best: Sequence[Best], cache_dir: Path | None, projection: Projection) -> Shown:
    """Samples and the map from the first of the best, confident mistakes of each."""
    lacking: list[tuple[str, str]] = []
    classes: tuple[Sampled, ...] = ()
    mistakes: list[tuple[str, Sequence[Thumbnail]]] = []
    maps: list[Picture] = []
    for each in best:
        try:
            cache = _cache_of(each, cache_dir)
            if not maps and cache.holds_vectors:
                drawn = map_picture(cache, each.run, projection=projection)
                maps += [drawn] if drawn else []
            images = TestImages.of(cache)
        except UserError as error:
            lacking.append(("Images", str(error)))
            continue
        classes = classes or tuple(samples(images, each.run))
        if surest := confident_mistakes(images, each.run):
            mistakes.append((f"The surest mistakes of {each.name}", surest))
    return Shown(classes=classes, mistakes=tuple(mistakes), maps=tuple(maps), lacking=tuple(dict.fromkeys(lacking)))


def _cache_of(best: Best, cache_dir: Path | None) -> Cache:
    """The cache that a run comes from. Raises UserError where it is not there, or another by now."""
    told = best.run.record.get("cache", {})
    name = Path(told.get("file", "")).name
    if cache_dir is None or not name:
        raise UserError(f"the cache that {best.name} comes from was not named")
    cache = Cache.open(cache_dir / name)
    if cache.fingerprint != told.get("fingerprint"):
        raise UserError(f"{cache.path} is not the cache any more that {best.name} comes from")
    return cache
