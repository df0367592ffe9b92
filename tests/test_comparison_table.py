"""The table and the differences: means over seeds, marks on what does not compare, and results that go to JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from compared import a_group

from featcache.errors import UserError
from finetune.comparison.comparison_tables import differences_table, notes_of, results_table
from finetune.comparison.differences import differences_of
from finetune.comparison.groups import Group
from finetune.comparison.keeping import FILE_NAME, comparison_of, keep, read_comparison
from finetune.comparison.results import Comparison
from finetune.comparison.table import table_rows
from finetune.comparison.verdict import verdict_of
from heads.evidence.metrics import wilson
from heads.evidence.paired import holm, mcnemar


def drawn(share: float, n_seeds: int = 1, n_rows: int = 200, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([round(100 * share), seed]).random((n_seeds, n_rows)) < share


def comparison(tmp_path: Path, groups: list[Group]) -> Comparison:
    differences = differences_of(groups)
    return Comparison(
        name="drawn",
        folder=tmp_path / "drawn",
        dataset={"name": "drawn", "n_train": 500, "n_val": 50, "n_test": 200},
        encoders={},
        settings={"seeds": [0, 1]},
        cells=tuple(cell for each in groups for cell in each.cells),
        table=table_rows(groups, cache_dir=tmp_path),
        differences=differences,
        verdict=verdict_of(groups, differences),
    )


@pytest.fixture
def groups() -> list[Group]:
    return [
        a_group("logreg", drawn(0.7, 2), val=[0.6, 0.8]),
        a_group("knn", drawn(0.6, 2), val=0.69),
        a_group("full", drawn(0.75, 2), failures=["the loss is not finite"]),
        a_group("scratch", drawn(0.3, 0), kind="finetune", failures=["too large", "too large"]),
    ]


def test_a_row_tells_means_over_seeds(tmp_path: Path, groups: list[Group]) -> None:
    rows = table_rows(groups, cache_dir=tmp_path)
    accuracies = drawn(0.7, 2).mean(axis=1)
    first = rows[0]
    assert first.accuracy == pytest.approx(accuracies.mean())
    assert first.seed_spread == (accuracies.min(), accuracies.max())
    assert first.accuracy_ci95 == wilson(round(accuracies.mean() * 200), 200)
    assert first.gap == pytest.approx(1 - accuracies.mean())
    assert first.val_accuracy == pytest.approx(0.7)
    assert (rows[2].n_seeds, rows[2].n_failed, rows[2].notes) == (2, 1, ("seed 2: the loss is not finite",))
    assert (rows[3].n_seeds, rows[3].accuracy, rows[3].comparable) == (0, None, False)
    assert rows[3].notes == ("too large",)


def test_differences_are_against_the_best_head_by_validation(groups: list[Group]) -> None:
    """Holm's adjustment is over heads and over tuned methods apart."""
    more = [*groups, a_group("head", drawn(0.9, 1, seed=3))]
    found = {each.method: each for each in differences_of(more)}
    assert list(found) == ["knn", "full", "head"]
    assert {each.against for each in found.values()} == {"logreg"}
    assert found["full"].difference == pytest.approx(drawn(0.75, 2).mean() - drawn(0.7, 2).mean())
    assert (found["full"].n_seeds, found["head"].n_seeds) == (2, 1)
    assert found["head"].mcnemar_p == mcnemar(drawn(0.9, 1, seed=3)[0], drawn(0.7, 2)[0])
    assert found["knn"].holm_p == found["knn"].p
    adjusted = holm([found["full"].p, found["head"].p])
    assert [found["full"].holm_p, found["head"].holm_p] == adjusted
    assert not found["head"].tie


def test_a_head_of_its_best_epoch_is_no_reference(tmp_path: Path, groups: list[Group]) -> None:
    lucky = a_group("linear", drawn(0.65, 2), val=0.99, kind="head", params={"epochs": 3})
    more = [lucky, *groups]
    assert {each.against for each in differences_of(more)} == {"logreg"}
    assert verdict_of(more, differences_of(more)).best_head == "logreg"
    assert table_rows(more, cache_dir=tmp_path)[0].notes == (
        "validation accuracy is its best epoch's: the reference only without other heads",
    )
    alone = [lucky, groups[2]]
    assert {each.against for each in differences_of(alone)} == {"linear"}


def test_rows_that_do_not_compare_are_marked(tmp_path: Path) -> None:
    groups = [
        a_group("logreg", drawn(0.7)),
        a_group("knn", drawn(0.7)),
        a_group("svm", drawn(0.8), test_rows="others"),
        a_group("full", drawn(0.7), augment="flip"),
        a_group("scratch", drawn(0.7), encoder={"backbone": "resnet18", "preprocessing": {"image_size": 64}}),
        a_group("head", drawn(0.7), selection={"refit": True}),
        a_group("lp-ft", drawn(0.7), dataset={"name": "d", "fingerprint": "others", "n_train": 9, "n_test": 200}),
    ]
    notes = {row.method: row.notes for row in table_rows(groups, cache_dir=tmp_path)}
    assert notes == {
        "logreg": (),
        "knn": (),
        "svm": ("other test rows: in no difference",),
        "full": ("augmented: flip",),
        "scratch": ("other preprocessing (64 px)",),
        "head": ("refitted on validation rows, too",),
        "lp-ft": ("other training or validation rows",),
    }
    assert "svm" not in {each.method for each in differences_of(groups)}


def test_results_go_to_json_and_back(tmp_path: Path, groups: list[Group]) -> None:
    made = comparison(tmp_path, groups)
    assert comparison_of(json.loads(json.dumps(made.to_json()))) == made
    keep(made)
    assert read_comparison(made.folder) == made
    keep(replace(made, report=tmp_path / "report.html"))
    assert read_comparison(made.folder).report == tmp_path / "report.html"
    assert [path.name for path in made.folder.iterdir()] == [FILE_NAME]


def test_damaged_results_are_refused(tmp_path: Path, groups: list[Group]) -> None:
    with pytest.raises(UserError, match="no comparison"):
        read_comparison(tmp_path)
    told = comparison(tmp_path, groups).to_json()
    for changed in ({"schema": 2}, {"cells": [{}]}, {"verdict": None}, {"more": 1}):
        (tmp_path / FILE_NAME).write_text(json.dumps({**told, **changed}))
        with pytest.raises(UserError, match="schema"):
            read_comparison(tmp_path)


def test_tables_for_the_user(tmp_path: Path, groups: list[Group]) -> None:
    made = comparison(tmp_path, groups)
    table = results_table(made)
    assert "over seeds" in table.columns
    assert "backbone" not in table.columns
    assert all(len(line) == len(table.columns) for line in table.rows)
    assert table.rows[3][2] == "failed"
    assert list(notes_of(made)) == ["full: seed 2: the loss is not finite", "scratch: too large"]
    told = differences_table(made)
    assert [line[0] for line in told.rows] == ["knn", "full"]
    assert "tie" in {line[-1] for line in told.rows}
