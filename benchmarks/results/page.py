"""docs/results.md, from the cells: tables with means and deviations, and the curve of Figure 9."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ElementTree, indent

import torch

from benchmarks.results.measuring import FEWEST, STEPS
from benchmarks.results.pretraining import HALF_STEPS, HALVES, WHOLE, Arithmetic, arithmetic
from mae.data.sources.fashion_mnist import CLASS_NAMES
from mae.recipes.catalogue import DEMO
from mae.report.figures import Series, element, line_chart

Cells = Mapping[str, Any]
WAYS = {
    "fine-tuned from MAE": ("MAE", "fine-tuned"),
    "fine-tuned from scratch": ("untrained", "fine-tuned"),
    "logistic regression on MAE features": ("MAE", "logistic"),
    "logistic regression on the untrained encoder's features": ("untrained", "logistic"),
    "logistic regression on raw pixels": ("raw pixels", "logistic"),
    "k-NN on MAE features": ("MAE", "k-NN"),
    "k-NN on the untrained encoder's features": ("untrained", "k-NN"),
    "k-NN on raw pixels": ("raw pixels", "k-NN"),
}
COMPARED = (
    ("fine-tuned from MAE", "fine-tuned from scratch"),
    ("fine-tuned from MAE", "logistic regression on raw pixels"),
    ("logistic regression on MAE features", "logistic regression on raw pixels"),
)
STARTS = ("MAE", "supervised", "untrained", "raw pixels")
READERS = {
    "k-NN, mean": ("mean", "k-NN"),
    "k-NN, grid": ("grid", "k-NN"),
    "logistic, mean": ("mean", "logistic"),
    "logistic, grid": ("grid", "logistic"),
    "fine-tuned": ("fine-tuned",),
}
# An image by itself has no page whose colours it could follow.
STYLE = (
    "text{font:13px sans-serif;fill:#444}.grid{stroke:#ccc}.line{fill:none;stroke-width:2.5;"
    "stroke-linecap:round}.s0{stroke:#1b6ca8}.s1{stroke:#c4561e}.s2{stroke:#3d8a3d}"
)


def write_page(page: Path, cells: Cells, *, seeds: Sequence[int]) -> None:
    """Write the page, and the image beside it."""
    image = page.with_name("results-partial.svg")
    write_curve(image, cells, seeds=seeds)
    cost = arithmetic(DEMO.model)
    parts = [
        *_head(seeds),
        *_few(cells, seeds=seeds),
        *_transfer(cells, cost, seeds=seeds),
        *_partial(cells, image.name, seeds=seeds),
    ]
    page.write_text("\n".join(parts) + "\n")


def _head(seeds: Sequence[int]) -> list[str]:
    return [
        "# Results on the built-in images",
        "",
        "Made by `make results` (an hour and a half on 2 quiet cores; started again, it goes "
        f"on), on {date.today().isoformat()}, {os.cpu_count()} cores, torch "
        f"{torch.__version__.partition('+')[0]}, no GPU. Fashion-MNIST, 28 x 28 grey, 30,000 "
        "images to learn from and 10,000 to test on; ViT of width 96 and 4 blocks, the demo's. "
        f"Accuracy in % on the test images, mean ± std of {len(seeds)} seeds; a seed "
        "draws the initial weights, the order, the masks and the labels. All numbers of this page "
        "are measured here; none is anybody else's. How the settings were chosen stands in "
        "[log.md](log.md). Pixels from few masks: [segment.md](segment.md); objects from few "
        "boxes, with overlays: [detect.md](detect.md).",
        "",
    ]


def _few(cells: Cells, *, seeds: Sequence[int]) -> list[str]:
    def found(n: int, way: Sequence[str]) -> list[float]:
        return [_at(cells[f"few-{n}-{seed}"], way) for seed in seeds]

    steps = ", ".join(f"{steps} at {n} a class" for n, steps in STEPS.items())
    lines = [
        "## Few labels of all ten classes",
        "",
        f"Pre-training of the demo's network with AdamW, {WHOLE.epochs:g} epochs, {len(seeds)} "
        "times, without labels. Fine-tuning has "
        f"the same budget from either start: steps of 50 images, {steps}; each start has the "
        "settings that were best for it. Features are pooled over a 3 x 3 grid and standardised "
        "on the labelled images.",
        "",
        *_table(
            ["", *(f"{n} a class" for n in STEPS)],
            ([name, *(_score(found(n, way)) for n in STEPS)] for name, way in WAYS.items()),
        ),
        "",
        "Gaps, of every seed's own pair, in points:",
        "",
    ]
    for better, worse in COMPARED:
        gaps = {n: _gaps(found(n, WAYS[better]), found(n, WAYS[worse])) for n in STEPS}
        said = "; ".join(f"{n} a class {_gap(gap)}" for n, gap in gaps.items())
        lines.append(f"- {better} against {worse}: {said}.")
    return [*lines, ""]


def _transfer(cells: Cells, cost: Arithmetic, *, seeds: Sequence[int]) -> list[str]:
    lines = [
        "## Against supervised pre-training, in miniature",
        "",
        "The paper's claim, small: learn from the images of five classes, once as a masked "
        "autoencoder without their labels and once supervised with them, and see what that is "
        "worth with few labels of the other five classes. Same network, same images, and the "
        f"same arithmetic: {HALF_STEPS:,} steps of {DEMO.batch} for the masked autoencoder "
        f"({cost.mae / 1e6:.0f} M operations an image and step), "
        f"{round(HALF_STEPS * cost.mae / cost.supervised):,} for the supervised one "
        f"({cost.supervised / 1e6:.0f} M), counted by torch. `mean` for the supervised network is "
        "what its own head sees (mean, then norm); `grid` is 3 x 3. Fine-tuning from the "
        "supervised network takes the settings that were chosen for the masked autoencoder's.",
        "",
    ]
    gaps: dict[str, list[float]] = {reader: [] for reader in READERS}
    for half, classes in enumerate(HALVES):
        learnt, asked = (", ".join(CLASS_NAMES[i] for i in c) for c in (classes, HALVES[1 - half]))
        lines += [f"Learnt from {learnt}; asked about {asked}:", ""]
        rows = []
        for start in STARTS:
            for reader, way in _readers(start).items():
                found = {
                    n: [_at(cells[f"transfer-{half}-{n}-{seed}"], (start, *way)) for seed in seeds]
                    for n in FEWEST
                }
                rows.append([f"{start}: {reader}", *(_score(found[n]) for n in FEWEST)])
        lines += [*_table(["", *(f"{n} a class" for n in FEWEST)], rows), ""]
        lines += [_beside_pixels(cells, half, seeds=seeds), ""]
        for reader, way in READERS.items():
            for n in FEWEST:
                for seed in seeds:
                    cell = cells[f"transfer-{half}-{n}-{seed}"]
                    gaps[reader].append(_at(cell, ("MAE", *way)) - _at(cell, ("supervised", *way)))
    lines += ["Masked autoencoder less supervised, over both halves, all counts and seeds:", ""]
    for reader, values in gaps.items():
        ahead = sum(value > 0 for value in values)
        lines.append(
            f"- {reader}: {100 * statistics.mean(values):+.1f} points on the mean, ahead in "
            f"{ahead} of {len(values)}."
        )
    return [*lines, ""]


def _beside_pixels(cells: Cells, half: int, *, seeds: Sequence[int]) -> str:
    """Say plainly where the masked autoencoder stands beside no pre-training at all."""
    gaps = []
    for n in FEWEST:
        found = [cells[f"transfer-{half}-{n}-{seed}"] for seed in seeds]
        own, pixels = (
            [_at(cell, way) for cell in found]
            for way in (("MAE", "grid", "logistic"), ("raw pixels", "logistic"))
        )
        gap = 100 * (statistics.mean(own) - statistics.mean(pixels))
        gaps.append(f"{abs(gap):.1f} {'ahead' if gap > 0 else 'behind'} at {n} a class")
    return (
        "Beside logistic regression on raw pixels, which were trained on nothing, logistic "
        f"regression on the masked autoencoder's grid is {', '.join(gaps)}."
    )


def _readers(start: str) -> dict[str, tuple[str, ...]]:
    return READERS if start != "raw pixels" else {"k-NN": ("k-NN",), "logistic": ("logistic",)}


def _partial(cells: Cells, image: str, *, seeds: Sequence[int]) -> list[str]:
    points = list(cells[f"partial-{FEWEST[0]}-{seeds[0]}"])
    rows = (
        [_blocks_name(point), *(_score(_curve(cells, n, point, seeds)) for n in FEWEST)]
        for point in points
    )
    return [
        "## Partial fine-tuning (the paper's Figure 9)",
        "",
        f"![Accuracy by the number of blocks that are tuned]({image})",
        "",
        "The last blocks of the pre-trained encoder and the head are tuned, the others frozen; "
        "half a block is the MLP of the last one. 0 is logistic regression on the mean of the "
        "patch tokens. Settings are those of full fine-tuning at every point; the paper chooses "
        "the epochs anew for each.",
        "",
        *_table(["blocks tuned", *(f"{n} a class" for n in FEWEST)], rows),
        "",
        f"Between the lowest and the highest point lie {_range(cells, points, seeds=seeds)}.",
    ]


def _range(cells: Cells, points: Sequence[str], *, seeds: Sequence[int]) -> str:
    spans = []
    for n in FEWEST:
        means = [100 * statistics.mean(_curve(cells, n, point, seeds)) for point in points]
        spans.append(f"{max(means) - min(means):.1f} points at {n} a class")
    return ", ".join(spans)


def write_curve(image: Path, cells: Cells, *, seeds: Sequence[int]) -> None:
    """Draw accuracy over the number of blocks, a line for each number of labels."""
    points = list(cells[f"partial-{FEWEST[0]}-{seeds[0]}"])
    series = [
        Series(
            f"{n} labels a class",
            [(float(p), 100 * statistics.mean(_curve(cells, n, p, seeds))) for p in points],
        )
        for n in FEWEST
    ]
    chart = line_chart(series, "blocks tuned", "accuracy in %")
    chart.set("xmlns", "http://www.w3.org/2000/svg")
    chart.insert(0, element("style", STYLE))
    indent(chart)
    ElementTree(chart).write(image, encoding="unicode")


def _curve(cells: Cells, n: int, point: str, seeds: Sequence[int]) -> list[float]:
    return [cells[f"partial-{n}-{seed}"][point] for seed in seeds]


def _blocks_name(point: str) -> str:
    names = {"0": "none", "0.5": "half of the last"}
    return names.get(point, f"{float(point):g}")


def _at(cell: Any, way: Iterable[str]) -> float:
    for name in way:
        cell = cell[name]
    return float(cell)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    line: Callable[[Sequence[str]], str] = lambda cells: f"| {' | '.join(cells)} |"  # noqa: E731
    return [line(head), line(["---"] * len(head)), *map(line, rows)]


def _score(values: Sequence[float]) -> str:
    return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f}"


def _gaps(better: Sequence[float], worse: Sequence[float]) -> list[float]:
    return [100 * (a - b) for a, b in zip(better, worse, strict=True)]


def _gap(gaps: Sequence[float]) -> str:
    error = statistics.stdev(gaps) / len(gaps) ** 0.5
    seeds = f"{sum(g > 0 for g in gaps)} of {len(gaps)} seeds ahead"
    return f"{statistics.mean(gaps):+.1f} (standard error {error:.1f}, {seeds})"
