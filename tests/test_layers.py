"""Imports go downwards only; the model knows torch and nothing else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "mae"

# Lower numbers know nothing of higher ones; equal numbers do not know each other.
LAYERS = {
    "errors": 0,
    "durable": 1,
    "fields": 1,
    "network": 1,
    "config": 2,
    "sizes": 3,
    "published": 4,
    "model": 4,
    "data": 4,
    "recipes": 5,
    "weights": 5,
    "train": 5,
    "evaluate": 6,
    "report": 7,
    "jobs": 8,
    "options": 9,
    "verbs": 9,
    "cli": 10,
    "__main__": 11,
}
# Where two rooms share a layer in design and one has to know the other, it is said here.
ALLOWED = {("report", "evaluate"), ("weights", "train")}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module


def room(module: str) -> str:
    return module.split(".")[1]


FILES = sorted(p for p in SRC.rglob("*.py") if p.parent != SRC or p.stem != "__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_go_downwards(path: Path) -> None:
    here = path.relative_to(SRC).parts[0].removesuffix(".py")
    for line, module in imports(path):
        if not module.startswith("mae."):
            continue
        there = room(module)
        downwards = there == here or LAYERS[there] < LAYERS[here] or (here, there) in ALLOWED
        assert downwards, f"{path.name}:{line}: {here} must not import {module}"


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.parent.name == "model"], ids=lambda p: p.stem
)
def test_the_model_is_torch_and_nothing_else(path: Path) -> None:
    library = {"__future__", "collections", "math", "typing", "dataclasses"}
    for line, module in imports(path):
        top = module.split(".")[0]
        assert top in library | {"torch", "mae"}, f"{path.name}:{line}: model imports {module}"


def test_only_recipes_and_jobs_know_recipes() -> None:
    knowing = {
        path.relative_to(SRC).parts[0].removesuffix(".py")
        for path in FILES
        for _, module in imports(path)
        if module == "mae.recipes"
    }

    assert knowing <= {"jobs", "options", "report", "verbs"}


def test_one_module_alone_speaks_to_other_processes() -> None:
    distributed = re.compile(r"(import|from) torch\.distributed|from torch import .*distributed")
    speaking = [str(p.relative_to(SRC)) for p in FILES if distributed.search(p.read_text())]

    assert speaking == ["train/distributed.py"]


def test_files_fit_on_a_few_screens() -> None:
    long = {
        str(p.relative_to(SRC)): n for p in FILES if (n := len(p.read_text().split("\n"))) > 400
    }

    assert not long
