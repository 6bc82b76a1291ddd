"""What the report of a fine-tuning run shows beside that of pre-training."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from mae.report.confusion import Counts, confusion_sections
from mae.report.figures import element
from mae.report.mistakes import read_thumbnails
from mae.report.predictions import PredictionRow, read_predictions
from mae.report.run import RunFacts


def scores(run: RunFacts) -> dict[str, str]:
    """Return the test scores of a fine-tuning run as text, by name; empty before its end."""
    if not run.files.results.exists():
        return {}
    results: dict[str, Any] = json.loads(run.files.results.read_bytes())
    images = results.get("images", results.get("pictures"))  # pictures: version 0.1
    found = {"top-1": f"{results['top1']:.1%} of {images:,} test images"}
    if results["top5"] is not None:
        found["top-5"] = f"{results['top5']:.1%}"
    found["cross-entropy"] = f"{results['loss']:.4g} on the test images"
    if unreadable := len(results.get("unreadable", ())):
        found["unreadable"] = f"{unreadable:,} test images, left out"
    return found


def test_sections(run: RunFacts) -> Iterator[Element]:
    """Yield the confusion matrix, the most confident mistakes and the table of classes."""
    names, data = run.record["class_names"], shlex.quote(str(run.record["data"].get("path")))
    if run.files.predictions.exists():
        rows = read_predictions(run.files.predictions)
        wrong = read_thumbnails(run.files.mistakes, rows)
        yield from confusion_sections(_counts(rows, names), names, wrong)
    elif run.files.results.exists():
        here = shlex.quote(run.name)
        yield element("p", "This run kept no predictions; for the confusion matrix:")
        yield element("pre", f"mae evaluate {here} --data {data} --out evaluation.html")


def _counts(rows: list[PredictionRow], names: list[str]) -> Counts:
    numbers = {name: number for number, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    for _, label, predicted, *_ in rows:
        counts[numbers[label], numbers[predicted]] += 1
    return counts


def commands(run: RunFacts) -> str:
    """Return the commands that use a fine-tuned classifier."""
    here, data = shlex.quote(run.name), shlex.quote(str(run.record["data"].get("path")))
    return (
        f"mae evaluate {here} --data {data} --out evaluation.html\n"
        f"mae predict {here} IMAGES --out predictions.csv\n"
        f"mae weights export {here} classifier.pt2 --to torch-export --part classifier\n"
        f"mae weights convert {here} classifier.safetensors --to timm"
    )
