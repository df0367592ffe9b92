"""Run commands and give what they print."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def summary_of(run: Callable[..., tuple[int, str, str]], command: str, *arguments: object) -> dict[str, Any]:
    """What a command prints with --json; ``run`` is the fixture."""
    status, out, err = run(command, *arguments, "--json")
    assert status == 0, err
    summary: dict[str, Any] = json.loads(out)
    return summary
