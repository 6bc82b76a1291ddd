"""The README is true: its example runs and its map is the tree."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import mae
from tests.jobs.conftest import TINY, write_classes

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def block(language: str, containing: str) -> str:
    blocks = re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    return next(text for text in blocks if containing in text)


def test_the_python_example_runs_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    again: dict[str, object] = {}

    exec(block("python", "mae.create"), names)
    exec(block("python", "mae.create"), again)

    assert names["features"].shape == (64, 192)  # type: ignore[attr-defined]
    assert (names["features"] == again["features"]).all()  # type: ignore[attr-defined]
    assert (names["run"].resumed, again["run"].resumed) == (False, True)  # type: ignore[attr-defined]
    assert (tmp_path / "runs" / "example" / "report.html").exists()


def test_the_example_of_fine_tuning_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "LABELLED", "a", "b", count=5)
    mae.save(mae.create(TINY), "runs/PICTURES")
    names: dict[str, object] = {"mae": mae}

    exec(block("python", "mae.finetune"), names)

    assert names["tuned"].path == Path("runs/LABELLED-tuned")  # type: ignore[attr-defined]


def test_the_map_of_the_code_is_the_tree() -> None:
    section = README.partition("## Map of the code")[2].partition("\n## ")[0]
    listed = re.findall(r"^(\S+\.py)  +\S", section, flags=re.MULTILINE)
    package = ROOT / "src" / "mae"
    there = {
        str(p.relative_to(package)) for p in package.rglob("*.py") if p.read_text().count("\n") > 1
    }

    assert len(listed) == len(set(listed))
    assert set(listed) == there


def test_the_commands_shown_exist() -> None:
    from mae.verbs.every import VERBS

    shown = re.findall(r"^mae (\w+)", README, flags=re.MULTILINE)

    assert shown
    assert {shlex.split(line)[0] for line in shown} <= {verb.name.split()[0] for verb in VERBS}


def test_every_decision_is_numbered_once() -> None:
    numbers = [p.name[:4] for p in sorted((ROOT / "docs" / "decisions").glob("*.md"))]

    assert numbers == [f"{i:04}" for i in range(1, len(numbers) + 1)]
