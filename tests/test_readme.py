"""What the README and FORMAT.md say: the examples run, and the lists are whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from featcache.cache.cache_file import Cache
from featcache.sources.torchvision_sets import NAMES
from heads.classifiers import CLASSIFIERS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
FORMAT = (ROOT / "featcache" / "cache" / "FORMAT.md").read_text()


def examples(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_the_quick_start_is_two_lines() -> None:
    block = README.split("## Quick start")[1].split("```")[1]
    lines = [line for line in block.splitlines() if line.strip()]
    assert len(lines) == 2
    assert lines[1].startswith("pip install -e '.[test]' && ")


def test_the_python_example_runs(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cache.path.parent.parent)
    pytest.importorskip("pandas")
    reading, embedding, logistic = examples(README.split("\n## From Python\n")[1].split("\n## ")[0])
    names: dict[str, Any] = {}
    exec(reading, names)
    assert names["X"].shape == (40, 96)
    assert names["y"].shape == (40,)
    assert len(names["pairs"]) == len(names["frame"]) == 40
    exec(embedding, names)
    assert names["search"].best_score_ > 0.5
    assert len(list(Path("features/embedder").glob("*.h5"))) == 2
    exec(logistic, names)
    assert names["path"].coefs_.shape == (3, 10, 64)


def test_the_format_example_runs(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cache.path.parent.parent)
    (example,) = examples(FORMAT)
    names: dict[str, object] = {}
    exec(re.sub(r"features/[\w.-]+\.h5", f"features/{cache.path.name}", example), names)
    assert names["X"].shape == (40, 96)


def test_lists_are_whole() -> None:
    for name in NAMES:
        assert f"`{name}`" in README, name
    for name in CLASSIFIERS:
        assert f"| `{name}` |" in README, name
