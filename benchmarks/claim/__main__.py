"""The paper's 3x: an encoder that meets the mask tokens against one of visible patches alone.

`python -m benchmarks.claim [--pairs N] [--sizes vit-b/16,vit-l/16] [--batch N] [--device cuda]
[--json FILE]` makes whole float32 steps of four networks in turn in one process: both encoders,
each with a decoder of 8 blocks and of 1. It prints ratios of time and memory, and of the
operations that torch counts for every published size, next to the paper's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.claim.measuring import measure
from benchmarks.claim.report import Row, page, rows_of, values

PUBLISHED = ("vit-b/16", "vit-l/16", "vit-h/14")


def main(words: Sequence[str]) -> None:
    """Measure the sizes asked for, count the operations of every published one, print and write."""
    asked = _arguments(words)
    rows: list[Row] = []
    for model in dict.fromkeys((*asked.sizes, *PUBLISHED)):
        found = None
        if model in asked.sizes:
            found = measure(model, batch=asked.batch, pairs=asked.pairs, device=asked.device)
        rows += rows_of(model, found)
    print(page(rows, asked.device))
    if asked.json is not None:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(values(rows, asked.device), indent=1))


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claim")
    sizes = lambda text: tuple(filter(None, text.split(",")))  # noqa: E731
    parser.add_argument("--pairs", type=int, default=10, help="rounds of the four networks; 10")
    parser.add_argument("--sizes", type=sizes, default=PUBLISHED[:2], help="measured; B and L")
    parser.add_argument("--batch", type=int, default=8, help="images of a step; 8")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu")
    parser.add_argument("--json", type=Path, help="every figure, for machines")
    return parser.parse_args(words)


if __name__ == "__main__":
    main(sys.argv[1:])
