"""Fewer training rows: nested, stratified, chosen on themselves alone, and told with what seeds and images matter."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featcache.cache.cache_file import Cache
from featcache.common.errors import UsageError, UserError
from featcache.embedding.job import Embedding
from heads.evidence.metrics import wilson
from heads.head_run import fit_head
from heads.learning_curve import (
    NOTE_OWN,
    CurvePiece,
    Size,
    check_sizes,
    curve_notes,
    curve_point,
    nested_subset,
    summarised,
)
from heads.recipe import Recipe
from heads.source import Source


def source_of(cache: Cache) -> Source:
    return Source(paths=(cache.path,), fingerprints=(cache.fingerprint,), val_fraction=0.2)


def test_subsets_are_stratified_and_nested() -> None:
    y = np.repeat(np.arange(3), [3, 40, 200])
    np.random.default_rng(0).shuffle(y)
    names = list("abc")
    for seed in (0, 1):
        before: set[int] = set()
        for fraction in (0.001, 0.1, 0.5, 1.0):
            rows = nested_subset(y, Size(fraction=fraction), seed=seed, class_names=names)
            assert (np.diff(rows) > 0).all()
            assert before <= set(rows.tolist())
            before = set(rows.tolist())
            wanted = [max(1, round(fraction * n)) for n in (3, 40, 200)]
            assert np.bincount(y[rows]).tolist() == wanted
        assert len(before) == 243
        one, two = (nested_subset(y, Size(shots=n), seed=seed, class_names=names) for n in (1, 3))
        assert np.bincount(y[two]).tolist() == [3, 3, 3]
        assert set(one.tolist()) <= set(two.tolist())
    drawn = [nested_subset(y, Size(shots=2), seed=seed, class_names=names).tolist() for seed in (0, 1)]
    assert drawn[0] != drawn[1]
    with pytest.raises(UserError, match="--shots 4: class 'a' has 3 training rows; ask for at most 3"):
        nested_subset(y, Size(shots=4), seed=0, class_names=names)


def test_sizes_that_make_no_sense_are_refused() -> None:
    for size in ({"fraction": 0.0}, {"fraction": 1.1}, {"shots": 0}):
        with pytest.raises(UsageError, match="expected"):
            Size(**size)  # type: ignore[arg-type]


def test_all_rows_are_the_ordinary_head(cache: Cache) -> None:
    source = source_of(cache)
    rows = source.rows()
    point = curve_point(CurvePiece(source=source, recipe=Recipe(clf="ridge"), size=Size(fraction=1.0)))
    assert point["n_train"] == len(rows.dev) == 40
    assert point["validated"]
    assert point["test_accuracy"] == fit_head(rows, Recipe(clf="ridge")).metrics["test"].accuracy
    assert point["test_right"] == round(point["test_accuracy"] * len(rows.test))


def test_nothing_but_the_subset_is_looked_at(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(cache)
    recipe, size = Recipe(clf="ridge", seed=3), Size(shots=4)
    plain = curve_point(CurvePiece(source=source, recipe=recipe, size=size))
    rows = source.rows()
    kept = nested_subset(rows.dev.labels, size, seed=3, class_names=rows.class_names)
    labels = 1 - rows.dev.labels
    labels[kept] = rows.dev.labels[kept]
    n_train = len(rows.train)
    train, val = replace(rows.train, labels=labels[:n_train]), replace(rows.val, labels=labels[n_train:])
    spoiled = replace(rows, train=train, val=val)
    monkeypatch.setattr(Source, "rows", lambda self: spoiled)
    monkeypatch.setattr("heads.learning_curve.nested_subset", lambda *_args, **_kwargs: kept)
    assert curve_point(CurvePiece(source=source, recipe=recipe, size=size)) == plain


@pytest.mark.parametrize(
    "recipe", [Recipe(clf="logreg"), Recipe(clf="ridge", cv=5), Recipe(clf="lda", cv="loo")], ids=str
)
def test_one_row_a_class_cannot_be_validated(cache: Cache, recipe: Recipe) -> None:
    source = source_of(cache)
    points = [curve_point(CurvePiece(source=source, recipe=recipe, size=Size(shots=shots))) for shots in (1, 2)]
    assert [point["validated"] for point in points] == [False, True]
    assert [point["n_train"] for point in points] == [2, 4]
    (note,) = curve_notes(source.rows(), points)
    assert note.startswith("with one row a class there is nothing to validate on")


def test_a_sets_own_validation_chooses_and_is_not_fitted_on(
    make_folder: Callable, embed: Callable[..., Embedding]
) -> None:
    counts = {"red": 6, "green": 5}
    cache = embed(make_folder({"train": counts, "val": counts, "test": counts})).run().cache
    source = source_of(cache)
    rows = source.rows()
    points = [
        curve_point(CurvePiece(source=source, recipe=Recipe(clf="ridge"), size=size))
        for size in (Size(shots=1), Size(fraction=1.0))
    ]
    assert [point["n_train"] for point in points] == [2, 11]
    assert all(point["validated"] for point in points)
    assert points[1]["test_accuracy"] == fit_head(rows, Recipe(clf="ridge", refit=False)).metrics["test"].accuracy
    assert curve_notes(rows, points) == [NOTE_OWN]
    with pytest.raises(UserError, match="--shots 6: class 'green' has 5 training rows"):
        check_sizes(rows, [Size(shots=6)])


def test_seeds_and_images_are_told_apart() -> None:
    points = [
        {"fraction": None, "shots": shots, "seed": seed, "n_train": 2 * shots, "test_accuracy": accuracy}
        for shots, accuracies in ((5, (0.8, 0.9)), (1, (0.5, 0.7)))
        for seed, accuracy in enumerate(accuracies)
    ]
    few, many = summarised(points, 50)
    assert (few["n_train"], many["n_train"]) == (2, 10)
    assert few["accuracy"] == {"mean": 0.6, "sd": pytest.approx(0.1 * 2**0.5), "min": 0.5, "max": 0.7}
    assert few["accuracy_ci95"] == list(wilson(30, 50))
    assert [point["seed"] for point in many["points"]] == [0, 1]
    assert summarised(points[:1], 50)[0]["accuracy"]["sd"] is None


def test_the_command_draws_a_curve(run: Callable, cache: Cache, tmp_path: Path) -> None:
    flags = ["--clf", "ridge", "--fractions", "0.2,0.5,1", "--seeds", "2", "--val-fraction", "0.2"]
    status, out, err = run("fit-head", *flags, "--json", "--name", "c")
    assert status == 0, err
    curve = json.loads(out)
    assert curve == json.loads((tmp_path / "runs/c/curve.json").read_text())
    assert [size["n_train"] for size in curve["sizes"]] == [8, 20, 40]
    assert all(len(size["points"]) == 2 for size in curve["sizes"])
    assert curve["power_law"]["twice"]["n"] == 80
    assert "twice the data, 80 rows, would bring an accuracy of" in err
    assert "sd over seeds" in err
    pytest.importorskip("matplotlib")
    assert (tmp_path / "runs/c/curve.png").read_bytes().startswith(b"\x89PNG")
    status, out, _ = run("fit-head", *flags, "--json", "--jobs", "2")
    assert json.loads(out)["sizes"] == curve["sizes"]
    assert (tmp_path / "runs" / f"{cache.dataset}-timm_test_resnet-ridge-curve-1").is_dir()
    status, out, _ = run("fit-head", "--clf", "ridge", "--shots", "1,2", "--val-fraction", "0.2")
    assert status == 0
    assert "no power law: it takes at least three sizes" in out
    status, _, err = run("fit-head", "--shots", "21")
    assert status == 1
    assert "class 'green' has 20 training rows" in err
    for flags in (["--report"], ["--against", "r"], ["--clf", "ridge,lda"], ["--fractions", "0.5"], ["--nested", "3"]):
        assert run("fit-head", "--shots", "1", *flags)[0] == 2
