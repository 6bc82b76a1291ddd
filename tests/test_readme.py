"""The README is true: its examples run, its commands and pages exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

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

    exec(block("python", "mae.embed"), names)
    exec(block("python", "mae.embed"), again)

    assert names["features"].shape == (64, 192)  # type: ignore[attr-defined]
    assert (names["features"] == again["features"]).all()  # type: ignore[attr-defined]
    assert (names["run"].resumed, again["run"].resumed) == (False, True)  # type: ignore[attr-defined]
    assert (tmp_path / "runs" / "example" / "report.html").exists()


def test_the_example_of_fine_tuning_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("LABELLED", "NEW"):
        write_classes(tmp_path / folder, "a", "b", count=5)
    mae.save(mae.create(TINY), "runs/IMAGES")
    names: dict[str, object] = {"mae": mae}

    exec(block("python", "mae.finetune"), names)

    assert names["tuned"].path == Path("runs/LABELLED-tuned")  # type: ignore[attr-defined]
    assert len(names["found"].names) == 10  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_tour_in_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "LABELLED", "a", "b", count=5)
    write_classes(tmp_path / "IMAGES", "a", count=8)
    page = (ROOT / "docs" / "python.md").read_text()
    shown: dict[str, Any] = {}

    for text in re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE):
        exec(text, shown)

    assert shown["features"].shape == (8, 9 * 192) and shown["run"].num_steps == 10
    assert shown["score"].images == 2 and len(shown["table"].classes) == 8
    assert shown["weights"].shape == (2, 3, 17, 17) and shown["tokens"].shape == (2, 16, 192)
    assert [each.shape for each in shown["maps"]] == [(2, 192, 4, 4)] * 4
    assert repr(shown["run"]).startswith("Run(path='runs/IMAGES', num_steps=10, ")


def test_a_reader_sees_all_of_it_in_a_few_minutes() -> None:
    assert README.count("\n") <= 120


def test_every_page_it_links_to_exists() -> None:
    linked = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)

    assert linked
    assert not [path for path in linked if not (ROOT / path).exists()]


def test_the_commands_shown_exist() -> None:
    from mae.cli.verbs.every import VERBS

    shown = re.findall(r"^mae (\w+)", README, flags=re.MULTILINE)

    assert shown
    assert {shlex.split(line)[0] for line in shown} <= {verb.name.split()[0] for verb in VERBS}


def test_every_decision_is_numbered_once() -> None:
    numbers = [p.name[:4] for p in sorted((ROOT / "docs" / "decisions").glob("*.md"))]

    assert numbers == [f"{i:04}" for i in range(1, len(numbers) + 1)]
