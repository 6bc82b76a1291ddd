"""x"""

from pathlib import Path


def main(out: Path, folder: Path) -> None: ...
