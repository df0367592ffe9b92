"""The comparison's page: whole, self-contained, nothing in it executed, and the same in a real browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import probed
from comparing import HOSTILE, compared_pictures
from conftest import BACKBONE

from featcache.cache.cache_file import Cache
from featcache.common.errors import UsageError, UserError
from finetune.comparison import report
from finetune.comparison.page.drawn_runs import read_finished
from finetune.comparison.page.embedding_map import map_picture
from finetune.comparison.page.outcome_charts import pareto_front
from finetune.comparison.page.training_charts import training_pictures
from finetune.comparison.report import write_report
from finetune.comparison.results import Comparison
from heads.runs import read_run

PNG = b"\x89PNG\r\n\x1a\n"


class Page(HTMLParser):
    """Every element with its attributes, and the text of each kind of element."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), (tag, attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compared_pictures(tmp_path_factory.mktemp("compared"))


@pytest.fixture(scope="module")
def path(comparison: Comparison) -> Path:
    return write_report(comparison, comparison.folder, cache_dir=comparison.folder.parent / "features")


@pytest.fixture(scope="module")
def page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_every_row_and_failure_is_there(page: Page, comparison: Comparison) -> None:
    rows = page.texts["tr"]
    assert len(rows) == 2 + len(comparison.table) + len(comparison.differences)
    assert sorted(row.method for row in comparison.table) == ["full", "head", "logreg", "partial:layer4", "ridge"]
    for row in comparison.table:
        if row.accuracy is None:
            continue
        assert any(text.strip().startswith(row.method) and f"{row.accuracy:.3f}" in text for text in rows)
    assert any(text.strip().startswith("full") and "failed" in text for text in rows)
    assert "full, timm/test_resnet, seed 0: <b>no</b> memory" in page.texts["li"]
    assert page.texts["p"][1 : 1 + len(comparison.verdict.sentences)] == list(comparison.verdict.sentences)


def test_every_picture_is_embedded_and_told(page: Page, path: Path) -> None:
    images = page.all("img")
    embedded = [base64.b64decode(str(image["src"]).partition(",")[2]) for image in images]
    assert all(str(image["src"]).startswith(("data:image/png;base64,", "data:image/jpeg;base64,")) for image in images)
    assert all(data.startswith((PNG, b"\xff\xd8\xff")) for data in embedded)
    assert all(len(str(image["alt"])) > 20 for image in images)
    beside = {file.name: file.read_bytes() for file in path.parent.iterdir() if file != path}
    assert set(beside) == {
        f"{name}.png"
        for name in (
            "accuracy", "loss", "differences", "cost", "training-loss", "training-accuracy", "validation-accuracy",
            "selection", "confusions-head", "confusions-tuned", "map",
        )
    }  # fmt: skip
    charts = [data for data in embedded if data.startswith(PNG)]
    assert sorted(charts) == sorted(beside.values())
    dark = [base64.b64decode(str(source["srcset"]).partition(",")[2]) for source in page.all("source")]
    assert len(dark) == len(charts)
    assert not set(dark) & set(charts)


def test_thumbnails_are_the_test_images(page: Page) -> None:
    told = [str(image["alt"]) for image in page.all("img") if str(image["src"]).startswith("data:image/jpeg")]
    for name in HOSTILE:
        assert sum(alt.startswith(f"test image test/{name}/") and alt.endswith(f"of class {name}") for alt in told) == 4
    assert any("taken for" in alt for alt in told)


def test_nothing_is_loaded_and_nothing_foreign_runs(page: Page, path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(?i)https?:|url\(|@import|//[a-z]", re.sub(r"data:image/[^\"]*", "", text))
    assert {tag for tag, _ in page.elements} >= {"main", "nav", "h1", "caption"}
    assert not {tag for tag, _ in page.elements} & {"iframe", "link", "object", "embed", "base", "form"}
    assert len(page.all("script")) == len(page.all("style")) == 1
    for _, attributes in page.elements:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv")]
    for tag in ("script", "style"):
        (code,) = page.texts[tag]
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in str(policy)
    assert str(policy).startswith("default-src 'none'; ")


def test_hostile_names_are_text(page: Page) -> None:
    assert any(HOSTILE[0] in text for text in page.texts["h3"])
    assert any(HOSTILE[1] in text for text in page.texts["h3"])


def test_tables_are_tables(page: Page) -> None:
    assert len(page.texts["caption"]) == 2
    headers = page.all("th")
    assert {header.get("scope") for header in headers} == {"col", "row"}
    values = [cell["data-value"] for cell in page.all("td")]
    numbers = [float(str(value)) for value in values if value and not str(value)[0].isalpha()]
    assert len(numbers) > 40
    assert np.isfinite(numbers).all()
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert max(later - earlier for earlier, later in pairwise(levels)) == 1
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    targets = {str(a["href"])[1:] for a in page.all("a")}
    assert targets <= set(ids)


@pytest.fixture
def bare(comparison: Comparison) -> Comparison:
    """The same with nothing to draw but bars."""
    return replace(comparison, cells=(), differences=())


def test_the_same_numbers_give_the_same_pictures(bare: Comparison, path: Path, tmp_path: Path) -> None:
    write_report(bare, tmp_path)
    drawn = {file.name: file.read_bytes() for file in tmp_path.glob("*.png")}
    assert set(drawn) == {"accuracy.png", "cost.png", "loss.png"}
    assert drawn == {name: (path.parent / name).read_bytes() for name in drawn}


def test_without_matplotlib_the_page_stands(bare: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "find_spec", lambda name: None if name == "matplotlib" else object())
    first, second = (write_report(bare, tmp_path / name).read_text() for name in "ab")
    assert first == second
    page = Page(first)
    assert page.all("img") == []
    assert any("pip install 'featcache[report]'" in text for text in page.texts["li"])
    assert len(page.texts["tr"]) == 1 + len(bare.table)
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["report.html"]


def test_a_missing_extra_and_bad_wishes_are_named(
    bare: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="unknown projection 'mds': expected one of pca, tsne, umap"):
        write_report(bare, tmp_path, projection="mds")  # type: ignore[arg-type]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(bare, tmp_path / "file" / "folder")
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"jinja2 is not installed: pip install 'featcache\[report\]'"):
        write_report(bare, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_runs_that_can_not_be_read_are_named(comparison: Comparison, tmp_path: Path) -> None:
    runs = [cell for cell in comparison.cells if cell.run][:2]
    for cell, change in zip(runs, ({"selection": {"how": 3}}, {"schema": 99}), strict=True):
        assert cell.run
        folder = tmp_path / cell.run.name
        shutil.copytree(cell.run, folder)
        record = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps({**record, **change}))
    damaged = tuple(replace(cell, run=tmp_path / cell.run.name) for cell in runs if cell.run)
    some = replace(comparison, cells=damaged, differences=())
    lines = Page(write_report(some, tmp_path / "page").read_text()).texts["li"]
    assert any("run.json: selection.how is no text" in line for line in lines)
    assert any("schema 99" in line for line in lines)


def test_training_on_a_share_that_is_not_compared_is_named(comparison: Comparison) -> None:
    def tenth(each: Any) -> Any:
        return replace(each, fraction=0.1) if each.kind == "finetune" else each

    apart = replace(comparison, table=tuple(map(tenth, comparison.table)), cells=tuple(map(tenth, comparison.cells)))
    runs = read_finished(apart)
    assert runs.tuned_records(BACKBONE) == {}
    names = {cell.method for cell in comparison.cells if cell.kind == "finetune" and cell.run}
    assert {name for name, _ in runs.unread} == names
    assert {why for _, why in runs.unread} == {
        "its training: it has no run on 100 % of the training images, which is what is compared"
    }
    both = read_finished(comparison)
    assert set(both.tuned_records(BACKBONE)) == names
    assert both.unread == ()


def test_a_recorded_test_curve_is_marked() -> None:
    history = [
        {"epoch": 1, "phase": "all", "train_loss": 1.0, "test_accuracy": 0.3},
        {"epoch": 1, "phase": "refit:all", "train_loss": 9.0, "train_accuracy": 0.9, "val_accuracy": None},
    ]
    drawn = {each.name: each for each in training_pictures({"full": [history]}, {"full": 0})}
    assert list(drawn) == ["training-loss", "test-accuracy"]
    assert "used for no choice" in drawn["test-accuracy"].title
    assert "chosen by it" in drawn["test-accuracy"].caption
    assert drawn["training-loss"].alt == "Training loss by epoch. full: 1.000 at epoch 1."


def test_a_map_by_tsne(comparison: Comparison) -> None:
    (cell,) = (cell for cell in comparison.cells if cell.method == "logreg" and cell.run)
    assert cell.run
    run = read_run(cell.run)
    cache = Cache.open(comparison.folder.parent / "features" / run.record["cache"]["file"])
    drawn = map_picture(cache, run, projection="tsne")
    assert drawn is not None
    assert drawn.title == "Map of the embedding (t-SNE)"
    assert drawn.alt.startswith("Scatter plot of 20 test images by the first two axes of t-SNE")


def test_the_pareto_front() -> None:
    rng = np.random.default_rng(0)
    seconds, accuracies = rng.integers(1, 9, 40).tolist(), rng.integers(1, 9, 40).tolist()
    front = pareto_front(seconds, accuracies)
    points = list(zip(seconds, accuracies, strict=True))

    def beaten(a: tuple[int, int]) -> bool:
        return any(b != a and b[0] <= a[0] and b[1] >= a[1] for b in points)

    assert sorted({points[i] for i in front}) == sorted({point for point in points if not beaten(point)})
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_in_a_browser(path: Path, comparison: Comparison, tmp_path: Path, dark: bool) -> None:
    """Nothing cut off, overlapping, broken or blocked, on a phone and on a desk; tables sort."""
    finished = sorted(row.accuracy for row in comparison.table if row.accuracy is not None)
    for told, width in zip(probed(path, tmp_path, widths=(390, 1280), dark=dark), (390, 1280), strict=True):
        assert told["width"] == told["scrollWidth"] == width
        assert [told[key] for key in ("blocked", "broken", "outside", "cut", "overlapping")] == [[], 0, [], [], []]
        assert told["dark"] is dark
        assert set(told["darkPictures"]) == {dark}
        assert told["buttons"]
        (unsorted, _), (first, falling), (second, rising) = told["sorted"]
        assert (unsorted, first, second) == ("none", "descending", "ascending")
        assert [float(value) for value in rising[:-1]] == pytest.approx(finished)
        assert [float(value) for value in falling[:-1]] == pytest.approx(finished[::-1])
        assert rising[-1] == falling[-1] == ""  # the run that failed stays last
