"""Figures of runs, one JSON line each, so that a benchmark can be given again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def kept(path: Path) -> dict[str, dict[str, Any]]:
    """Read the measured runs by name."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {run["name"]: run for run in map(json.loads, lines)}


def keep(path: Path, run: dict[str, Any]) -> None:
    """Add the line of a run."""
    with path.open("a") as file:
        file.write(json.dumps(run) + "\n")
