"""Count lines of code by package: `python scripts/count_lines.py src`.

A line counts if a token of code ends or begins on it. Docstrings, comments and blank lines do not.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def count_lines(text: str) -> int:
    """Count the lines of Python source that hold code."""
    lines = set[int]()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - _docstring_lines(ast.parse(text)))


def _docstring_lines(tree: ast.Module) -> set[int]:
    """Give the lines of strings that stand alone: docstrings of modules, definitions and fields."""
    found = set[int]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            if isinstance(node.value.value, str):
                found.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return found


def main(folder: str) -> None:
    """Print a line a package, largest first, and the sum."""
    root = next(path for path in (Path(folder) / "mae", Path(folder)) if path.is_dir())
    packages, files = Counter[str](), Counter[str]()
    for path in sorted(root.rglob("*.py")):
        package = path.relative_to(root).parts[0].removesuffix(".py")
        packages[package] += count_lines(path.read_text())
        files[package] += 1
    for package, lines in packages.most_common():
        print(f"{package:<12} {files[package]:>4} files {lines:>7,} lines")
    print(f"{'all':<12} {files.total():>4} files {packages.total():>7,} lines")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "src")
