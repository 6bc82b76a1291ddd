"""Measure what pre-training is worth: `python -m benchmarks.results FOLDER`, as `make results`."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.results.cells import fill_page

if __name__ == "__main__":
    fill_page(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/results"))
