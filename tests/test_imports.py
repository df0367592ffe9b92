"""The floors: imports go down only, and what need not import torch does not."""

from __future__ import annotations

import ast
import subprocess
import sys
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


def test_the_contracts_of_pyproject_hold() -> None:
    """The order of floors and rooms; imports for types and inside functions count."""
    done = subprocess.run(
        ["lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("package", BELOW)
def test_imports_go_down_only(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert imported(path) & BELOW.keys() <= BELOW[package], path


@pytest.mark.parametrize("package", BELOW)
def test_only_commands_parse_arguments_or_print(package: str) -> None:
    for path in sorted((ROOT / package).rglob("*.py")):
        if path.stem.endswith("_command") or "commands" in path.parts:
            continue
        assert "argparse" not in imported(path), path
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not any(isinstance(call, ast.Name) and call.id == "print" for call in calls), path


#: What imports none of torch, scikit-learn and scipy.
LIGHTEST = ["heads.saved", "heads.linear_probe", "heads.evidence.metrics", "heads.selection"]
#: What imports neither torch nor scikit-learn, in the order of the floors.
LIGHT = [
    "featcache", "heads", "featcache.cache.cache_file", "featcache.build.builder", "featcache.sources.image_sets",
    "featcache.maintenance.inventory", "featcache.maintenance.garbage", "featcache.maintenance.export",
    "heads.head_run", "heads.serving.inputs", "heads.serving.resumable_file", "heads.serving.predictions",
    "heads.audit.audit", "finetune", "finetune.planning", "finetune.settings", "finetune.rates",
    "finetune.comparison.results", "finetune.comparison.recipe", "featcache.commands.embed",
    "featcache.commands.cache", "heads.fit_head_command", "heads.serving.export_command",
    "heads.serving.predict_command", "heads.audit.audit_command", "finetune.finetune_command",
    "finetune.comparison.compare_command",
]  # fmt: skip


@pytest.mark.parametrize(
    ("modules", "heavy"), [(LIGHTEST, "torch sklearn scipy"), (LIGHT, "torch sklearn")], ids=["lightest", "light"]
)
def test_what_is_light_imports_nothing_heavy(modules: list[str], heavy: str) -> None:
    """One module after the other in one process, so that the first that does is named."""
    code = """
import importlib, sys
heavy = set(sys.argv[1].split())
for name in sys.argv[2:]:
    importlib.import_module(name)
    assert not heavy & set(sys.modules), f"{name} imports {heavy & set(sys.modules)}"
"""
    command = [sys.executable, "-c", code, heavy, *modules]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr


def test_public_names_are_there() -> None:
    for name in featcache.__all__:
        assert getattr(featcache, name).__module__.startswith("featcache.")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = featcache.nothing


def test_help_needs_no_torch() -> None:
    """The scripts in bin/ themselves, one after the other in one process."""
    code = """
import contextlib, io, runpy, sys
for path in sys.argv[1:]:
    sys.argv, out = [path, "--help"], io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(out):
        runpy.run_path(path, run_name="__main__")
    print(out.getvalue().split()[:2], {"torch", "sklearn"} & set(sys.modules))
"""
    paths = sorted(path for path in (ROOT / "bin").iterdir() if path.is_file())
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.splitlines() == [f"['usage:', '{path.name}'] set()" for path in paths]


def test_a_script_runs_as_a_program() -> None:
    done = subprocess.run([ROOT / "bin/cache", "--help"], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.startswith("usage: cache")
