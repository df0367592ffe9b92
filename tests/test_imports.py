"""The floors: imports go down only, and what need not import torch does not."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

import featcache

ROOT = Path(__file__).resolve().parents[1]
BELOW = {"featcache": {"featcache"}, "heads": {"featcache", "heads"}, "finetune": {"featcache", "heads", "finetune"}}


def imported(path: Path) -> set[str]:
    """The top-level packages that a file imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add((node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("package", BELOW)
def test_imports_go_down_only(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert imported(path) & BELOW.keys() <= BELOW[package], path


@pytest.mark.parametrize("package", BELOW)
def test_only_commands_parse_arguments_or_print(package: str) -> None:
    for path in sorted((ROOT / package).rglob("*.py")):
        if path.stem.endswith("_command") or path.stem == "command_line":
            continue
        assert "argparse" not in imported(path), path
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not any(isinstance(call, ast.Name) and call.id == "print" for call in calls), path


@pytest.mark.parametrize(
    "modules",
    [
        "featcache",
        "heads",
        "featcache.cache",
        "featcache.builder",
        "featcache.datasets",
        "heads.head_run",
        "featcache.embed_command, featcache.cache_command, heads.fit_head_command, finetune.finetune_command",
        "heads.serving.export_command",
        "heads.serving.predict_command, heads.serving.inputs, heads.serving.resumable_file, heads.serving.predictions",
        "heads.audit.audit_command, heads.audit.audit",
        "finetune, finetune.planning, finetune.settings, finetune.rates",
        "finetune.comparison.compare_command, finetune.comparison.results, finetune.comparison.recipe",
        "featcache.upkeep.inventory, featcache.upkeep.garbage, featcache.upkeep.export",
    ],
)
def test_torch_is_not_imported_by(modules: str) -> None:
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_public_names_are_there() -> None:
    for name in featcache.__all__:
        assert getattr(featcache, name).__module__.startswith("featcache.")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = featcache.nothing


@pytest.mark.parametrize("command", ["embed", "fit-head", "finetune", "compare", "predict", "export", "audit", "cache"])
def test_help_answers_at_once(command: str) -> None:
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, ROOT / "bin" / command, "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - begun)
    assert done.stdout.startswith(f"usage: {command}".encode())
    assert min(seconds) < 1
