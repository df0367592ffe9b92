"""The table and the differences: means over seeds, marks on what does not compare, and results that go to JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from compared import a_group

from featcache.common.errors import UserError
from finetune.comparison.comparison_tables import differences_table, notes_of, results_table
from finetune.comparison.differences import differences_of
from finetune.comparison.groups import Group
from finetune.comparison.keeping import FILE_NAME, comparison_of, keep, read_comparison
from finetune.comparison.page.points import at_fraction, points_of
from finetune.comparison.page.sections import facts_of
from finetune.comparison.page.tables import results_table as page_table
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
    assert found["head"].significant


def test_a_head_of_its_best_epoch_is_no_reference(tmp_path: Path, groups: list[Group]) -> None:
    lucky = a_group("linear", drawn(0.65, 2), val=0.99, kind="head", params={"epochs": 3})
    more = [lucky, *groups]
    assert {each.against for each in differences_of(more)} == {"logreg"}
    assert verdict_of(more, differences_of(more)).best_head == "logreg"
    assert table_rows(more, cache_dir=tmp_path)[0].notes == (
        "validation accuracy is its best epoch's: never the reference",
    )
    alone = [lucky, groups[2]]
    assert differences_of(alone) == ()
    assert verdict_of(alone, ()).sentences[0].startswith("No cached head can be compared with: none was trained")


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
        "head": ("refitted on validation rows, too: in no difference",),
        "lp-ft": ("other training or validation rows: in no difference",),
    }
    assert {each.method for each in differences_of(groups)} == {"knn", "full", "scratch"}


def test_methods_that_are_not_compared_are_named(tmp_path: Path) -> None:
    """In the notes, and in no fact, no mark and no picture that shows what is compared."""
    both = drawn(0.7, 2)
    groups = [
        a_group("logreg", both),
        a_group("knn", drawn(0.6, 1)),
        a_group("full", both, n_train=50, fraction=0.1),
        a_group("scratch", both, n_train=250, fraction=0.5, failures=["too large"]),
        a_group("scratch", drawn(0.3, 0), kind="finetune", failures=["too large"]),
    ]
    made = comparison(tmp_path, groups)
    assert list(notes_of(made)) == [
        "knn, 500 rows: compared over seed 0 alone",
        "full, 50 rows: trained on 50 rows (10 %), not on 500 rows (100 %): in no difference",
        "scratch, 250 rows: seed 2: too large; trained on 250 rows (50 %), not on 500 rows (100 %): in no difference",
        "scratch, 100 % rows: too large",
    ]
    assert made.compared_fraction == 1.0
    assert [each.method for each in made.differences] == ["knn"]
    assert [fact.name for fact in facts_of(made)] == ["Best cached head"]
    assert [line.cells[0].told for line in page_table(made).rows if line.chosen] == ["logreg"]
    assert {each.method for each in at_fraction(points_of(made), made.compared_fraction)} == {"logreg", "knn"}


def test_the_page_shows_the_share_that_the_verdict_is_of(tmp_path: Path) -> None:
    """Heads ran on all rows too, fine-tuning on a tenth alone: its fact and its mark are those of the tenth."""
    tenth = {"n_train": 50, "fraction": 0.1}
    groups = [
        a_group("logreg", drawn(0.8)),
        a_group("logreg", drawn(0.7), **tenth),
        a_group("full", drawn(0.6), **tenth),
    ]
    made = comparison(tmp_path, groups)
    assert made.compared_fraction == 0.1
    assert made.verdict.best_tuned == "full"
    facts = {fact.name: fact for fact in facts_of(made)}
    assert facts["Best cached head"].number == f"{drawn(0.7).mean():.3f}"
    assert facts["Best fine-tuning"].number == f"{drawn(0.6).mean():.3f}"
    assert [line.chosen for line in page_table(made).rows] == [False, True, True]


def test_an_undecided_gain_is_no_number_of_points_a_minute(tmp_path: Path) -> None:
    made = comparison(tmp_path, [a_group("logreg", drawn(0.7)), a_group("full", drawn(0.72))])
    assert made.verdict.outcome == "undecided"
    facts = {fact.name: fact.detail for fact in facts_of(made)}
    assert facts["Gain of fine-tuning"].endswith(", undecided")
    assert facts["Extra time"] == "beyond the head, search included"


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
    for changed in ({"schema": 1}, {"cells": [{}]}, {"verdict": None}, {"more": 1}):
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
    assert "no significant difference" in {line[-1] for line in told.rows}
