"""bin/audit from the command line, on digits with planted faults and hostile names."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import QUICK
from PIL import Image
from planting import found_in, plant
from sklearn.datasets import load_digits

from heads.audit import findings
from heads.audit.findings import write_findings

Run = Callable[..., tuple[int, str, str]]
HOSTILE = '1 <script>alert("x")</script> & \u202e'


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Zeros and ones, 40 + 12 each, as PNGs of 32 x 32, the second class under a hostile name."""
    root = tmp_path_factory.mktemp("digits") / "source"
    images, labels = load_digits(return_X_y=True)
    for label, name in ((0, "0"), (1, HOSTILE)):
        for i, row in enumerate(np.flatnonzero(labels == label)[:52]):
            path = root / ("train" if i < 40 else "test") / name.replace("/", "\u2215") / f"{label}-{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = (images[row].reshape(8, 8) * 15).astype(np.uint8)
            Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC).save(path)
    return root


def test_faults_planted_in_digits_are_found(digits_folder: Path, tmp_path: Path, run: Run) -> None:
    root = tmp_path / "planted"
    truth = plant(digits_folder, root, test="test", wrong=4, exact=3, resaved=3)
    (root / "train" / "0" / "cut <off>.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    copy = next((root / "test").glob("*/copy-0.png"))
    other = next(each for each in (root / "train").iterdir() if each.name != copy.parent.name)
    (other / "twice.png").write_bytes(copy.read_bytes())
    assert run("embed", "--dataset", root, *QUICK[:-2])[0] == 0
    status, out, told = run("audit")
    assert status == 0, told
    folder = Path("audits/planted-timm_test_resnet-1")
    assert out.splitlines()[-2].startswith(f"audit {folder}: findings.csv, audit.html")
    assert "exact duplicates" in out
    assert "\u202e" not in out
    assert sorted(path.name for path in folder.iterdir()) == ["audit.html", "audit.json", "findings.csv"]
    wrong, exact, near = found_in(folder / "findings.csv")
    assert exact == truth.exact
    assert near == truth.resaved
    assert len(wrong & truth.wrong) >= 3
    counts = json.loads((folder / "audit.json").read_text())["findings"]
    assert counts["damaged"]["all"] == 1
    assert counts["label-conflict"]["all"] == 1
    with (folder / "findings.csv").open(newline="") as file:
        rows = {row["kind"]: row for row in csv.DictReader(file)}
    conflict = rows["label-conflict"]
    assert conflict["id"].endswith("twice.png")
    assert (conflict["suggested_label"], conflict["exclude"], conflict["other_split"]) == (
        copy.parent.name,
        "yes",
        "test",
    )
    assert rows["damaged"]["id"] == "train/0/cut <off>.png"
    check_page((folder / "audit.html").read_text())
    leak = "WARNING: 3 of 30 test rows are byte for byte among those to fit on"
    status, out, _ = run("fit-head", "--clf", "ridge")
    assert leak in out
    status, out, _ = run("fit-head", "--clf", "ridge", "--exclude", folder / "findings.csv")
    assert "byte for byte" not in out
    assert "left out by --exclude findings.csv: 7 train rows" in out


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def check_page(text: str) -> None:
    page = Page()
    page.feed(text)
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) >= 16
    assert all((each["src"] or "").startswith("data:image/jpeg;base64,") and each["alt"] for each in images)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe")]
    assert "http" not in text
    assert "&lt;script&gt;" in text
    assert "\\u202e" in text
    assert "\u202e" not in text
    links = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    assert links == {f"#{attrs['id']}" for tag, attrs in page.tags if tag == "h2"}


def test_without_images_features_alone_decide(
    digits_folder: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "planted"
    truth = plant(digits_folder, root, test="test", wrong=0, exact=3, resaved=0)
    assert run("embed", "--dataset", root, *QUICK[:-2])[0] == 0
    root.rename(tmp_path / "gone")
    status, out, told = run("audit", "--json", "--name", "blind", "--top", "2")
    assert status == 0, told
    assert "images are not at hand" in told
    assert found_in(tmp_path / "audits" / "blind" / "findings.csv")[1] == truth.exact
    assert json.loads(out)["findings"]["exact-duplicate"]["excluded"] == 3
    assert "<img" not in (tmp_path / "audits" / "blind" / "audit.html").read_text()
    status, _, told = run("audit", "--name", "blind")
    assert (status, told.count("\n")) == (1, 1)
    assert "there is a run of that name" in told

    def meanwhile(path: Path, *given: Any) -> None:
        (tmp_path / "audits" / "late").mkdir()
        (tmp_path / "audits" / "late" / "audit.json").touch()
        write_findings(path, *given)

    monkeypatch.setattr(findings, "write_findings", meanwhile)
    status, out, told = run("audit", "--json", "--name", "late")
    assert status == 0, told
    assert json.loads(out)["folder"] == "audits/late-1"
    assert "WARNING: another process has made audits/late meanwhile; this one's work is kept as audits/late-1" in told
    assert found_in(tmp_path / "audits" / "late-1" / "findings.csv")[1] == truth.exact


@pytest.mark.parametrize(
    ("flags", "status", "expected"),
    [
        ((), 1, "no cache of vectors (found none at all); make one with bin/embed"),
        (("none.h5",), 1, "none.h5: no such cache"),
        (("--top", "-1"), 2, "--top -1: expected a whole number from 0 on"),
        (("--name", "../x"), 2, "expected letters, digits"),
    ],
)
def test_bad_input_gets_one_line(run: Run, flags: tuple[str, ...], status: int, expected: str) -> None:
    code, out, told = run("audit", *flags)
    assert (code, out, told.count("\n")) == (status, "", 1)
    assert expected in told
