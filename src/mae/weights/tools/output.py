"""Write files that appear only when they are complete and verified."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mae.errors import WeightsError


def require_new(path: Path) -> None:
    """Require that a path does not exist and its parent folder does.

    Raises:
        WeightsError: otherwise.
    """
    if not path.parent.is_dir():
        raise WeightsError(f"{path.parent}: no such folder; make it first")
    if path.exists():
        raise WeightsError(f"{path}: exists already; choose another name, or remove it first")


@contextmanager
def new_output(path: Path) -> Iterator[Path]:
    """Yield a path of the same name in a temporary folder, to write a file or a folder to.

    On success, it is moved to `path`, and other files in the temporary folder next to it. On
    failure, nothing is left.

    Raises:
        WeightsError: if it cannot be written.
    """
    folder = path.with_name(f".tmp-{path.name}-{secrets.token_hex(4)}")
    try:
        folder.mkdir()
        yield folder / path.name
        # A large ONNX file stores its values in a second file; the file that refers to it is
        # moved last.
        for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
            file.rename(path.with_name(file.name))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
