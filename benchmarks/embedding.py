"""Embedding of drawn JPEGs as large as ImageNet's by a ViT-B/16 of random weights.

`python -m benchmarks.embedding [IMAGES] [--emulated]` calls what `mae embed` calls, in float32
and, where the processor multiplies it, in bf16, in turn over equal parts of 1000 images. It
prints images a second, reading of weights and images included, and how far the features differ.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.data import draw_images
from benchmarks.processor import precisions_of, print_processor
from benchmarks.spread import Spread
from mae.evaluation.features import Array
from mae.evaluation.inputs import DEFAULT
from mae.jobs.embed import embed_to_file
from mae.model.create import create
from mae.weights.formats.native import save

MODEL = "vit-b/16"
PARTS = 3


def main(words: Sequence[str]) -> None:
    """Embed the parts in turn in each precision, and print."""
    count = next((int(word) for word in words if word.isdecimal()), 1000)
    print_processor()
    precisions = precisions_of("both", emulated="--emulated" in words)
    rates: dict[str, list[float]] = {name: [] for name in precisions}
    features: dict[str, list[Array]] = {name: [] for name in precisions}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        save(create(MODEL), work / "weights")
        for number, folder in enumerate(_parts(work, count)):
            for precision in precisions[:: 1 if number % 2 else -1]:
                out, settings = (
                    work / f"{precision}{number}.npy",
                    DEFAULT._replace(precision=precision),
                )
                began = time.perf_counter()
                done = embed_to_file(
                    work / "weights", folder, out=out, settings=settings, quiet=True
                )
                rates[precision].append(done.images / (time.perf_counter() - began))
                features[precision].append(np.load(out))
    for precision, each in rates.items():
        print(f"{MODEL}, {precision}: {Spread.of(each).written(2)} images/s, {count} images")
    if "bf16" in features:
        print(difference(*(np.concatenate(features[name]) for name in precisions)))


def _parts(work: Path, count: int) -> list[Path]:
    """Draw the images into a folder a part."""
    drawn = work / "drawn"
    drawn.mkdir()
    draw_images(drawn, count)
    for number, path in enumerate(sorted(drawn.iterdir())):
        folder = work / f"part-{number % PARTS}"
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
    return sorted(work.glob("part-*"))


def difference(single: Array, half: Array) -> str:
    """Say how far features in bf16, n D, are from those in float32."""
    a, b = single.astype(np.float64), half.astype(np.float64)
    cosines = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return (
        f"bf16 beside float32: largest difference {abs(a - b).max():.2g} (largest value "
        f"{abs(a).max():.2g}), smallest cosine {cosines.min():.6f}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
