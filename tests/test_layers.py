"""Imports go downwards only; the model knows torch and nothing else."""

from __future__ import annotations

import ast
import re
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import mae

SRC = Path(__file__).parent.parent / "src" / "mae"

# From the lowest layer up. A package imports from lower layers alone; a layer may be skipped.
LAYERS = (
    ("errors",),
    ("atomic", "progress"),
    ("config",),
    ("recipes", "parallel", "model", "data"),
    ("runs", "transfer"),
    ("weights",),
    ("planning",),
    ("train",),
    ("evaluation",),
    ("report",),
    ("jobs",),
    ("cli",),
    ("__main__",),
)
LAYER_OF = {name: number for number, layer in enumerate(LAYERS) for name in layer}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found += ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.lineno, node.module))
    return found


def package(module: str) -> str:
    return module.split(".")[1]


FILES = sorted(p for p in SRC.rglob("*.py") if p.parent != SRC or p.stem != "__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_go_downwards(path: Path) -> None:
    here = path.relative_to(SRC).parts[0].removesuffix(".py")
    for line, module in imports(path):
        if not module.startswith("mae."):
            continue
        there = package(module)
        down = there == here or LAYER_OF[there] < LAYER_OF[here]
        assert down, f"{path.name}:{line}: {here} must not import {module}"


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.is_relative_to(SRC / "model")], ids=lambda p: p.stem
)
def test_the_model_is_torch_and_nothing_else(path: Path) -> None:
    library = {"__future__", "collections", "dataclasses", "functools", "math", "pathlib", "typing"}
    for line, module in imports(path):
        top = module.split(".")[0]
        assert top in library | {"torch", "mae"}, f"{path.name}:{line}: model imports {module}"


def test_transfer_alone_imports_torchvision_and_only_when_used() -> None:
    # It is an extra: detectors need it, and nothing else does.
    for path in FILES:
        at_once = {
            node.lineno for node in tree(path).body if isinstance(node, ast.Import | ast.ImportFrom)
        }
        for line, module in imports(path):
            if module.split(".")[0] == "torchvision":
                assert path.is_relative_to(SRC / "transfer"), f"{path.name}:{line}"
                assert line not in at_once, f"{path.name}:{line}: import it in the function"


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = {".".join(path.relative_to(SRC.parent).with_suffix("").parts): path for path in FILES}
    below = {
        name: {there for _, there in imports(path) if there in modules}
        for name, path in modules.items()
    }
    done = set[str]()

    def walk(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way, name))
        if name not in done:
            for there in below[name]:
                walk(there, (*way, name))
            done.add(name)

    for name in modules:
        walk(name, ())


def test_no_public_name_is_that_of_a_package() -> None:
    for path in FILES:
        if path.name != "__main__.py":
            import_module(".".join(path.relative_to(SRC.parent).with_suffix("").parts))

    # Importing a module binds its name in the package: a public name would be hidden by it.
    assert not {*mae.__all__} & {
        path.relative_to(SRC).parts[0].removesuffix(".py") for path in FILES
    }
    for name in mae.__all__:
        assert not isinstance(getattr(mae, name), ModuleType), name


def test_parallel_alone_imports_torch_distributed() -> None:
    distributed = re.compile(r"(import|from) torch\.distributed|from torch import .*distributed")
    importing = [str(p.relative_to(SRC)) for p in FILES if distributed.search(p.read_text())]

    assert "parallel/processes.py" in importing
    assert {Path(name).parent.name for name in importing} == {"parallel"}


def test_files_fit_on_a_few_screens() -> None:
    long = {
        str(p.relative_to(SRC)): n for p in FILES if (n := len(p.read_text().split("\n"))) > 400
    }

    assert not long
