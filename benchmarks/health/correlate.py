"""Rank correlation of the label-free figures with a few-label probe, within each of three sets.

Twelve settings of equal steps and one network are trained on each set: built in, made by code,
and a folder. A probe with ten labels a class, five draws, scores each. The figure with the
largest mean correlation on the first two sets is chosen; what counts is its value on the third.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import spearmanr

from benchmarks.health.images import built_in, of_folder, textures
from benchmarks.health.kept import keep, kept
from benchmarks.health.planted import ADAMW, MUON, SOUND, network
from mae.config.run import AugmentConfig, ObjectiveConfig, OptimConfig, PretrainConfig
from mae.data.sources.source import ArraySource
from mae.evaluation.features import LabelledImages, encoder_features, standardized
from mae.evaluation.logistic import logistic_accuracy
from mae.evaluation.split import held_out, labels_per_class
from mae.jobs.pretrain import pretrain
from mae.model.encoder import Encoder
from mae.runs.log import read_rows

LABELS, DRAWS = 10, 5
LAST = ("rank", "dead", "cosine", "gain", "gain_over_mean", "held_out_gain",
        "held_out_gain_over_mean", "loss", "held_out_loss", "grad_norm")  # fmt: skip
"""Figures of the last check."""


class Set(NamedTuple):
    """Images to train on, and labelled ones to choose labels from and to score on."""

    train: ArraySource
    test: ArraySource


def _folder(path: Path) -> Set:
    source = of_folder(path)
    assert source.labels is not None
    held = held_out(source.labels, 0.3, seed=0)
    parts = (ArraySource(source.images[mask], labels=source.labels[mask]) for mask in (~held, held))
    return Set(*parts)


SETS: dict[str, Callable[[Path], Set]] = {
    "built-in": lambda _: Set(built_in(3000), built_in(2000, test=True)),
    "textures": lambda _: Set(textures(3000), textures(2000, seed=1)),
    "folder": _folder,
}
"""The figure is chosen on the first two and reported on the last. (The probe scores every encoder
of `shapes` as chance, so there is nothing to correlate.)"""


def _adamw(factor: float) -> OptimConfig:
    return replace(ADAMW, lr=factor * ADAMW.lr)


SETTINGS: dict[str, PretrainConfig] = {
    "AdamW": SOUND,
    "rate / 10": replace(SOUND, optim=_adamw(0.1)),
    "rate / 3": replace(SOUND, optim=_adamw(1 / 3)),
    "rate x 3": replace(SOUND, optim=_adamw(3)),
    "rate x 10": replace(SOUND, optim=_adamw(10)),
    "mask 0.3": replace(SOUND, objective=ObjectiveConfig(mask_ratio=0.3)),
    "mask 0.5": replace(SOUND, objective=ObjectiveConfig(mask_ratio=0.5)),
    "mask 0.9": replace(SOUND, objective=ObjectiveConfig(mask_ratio=0.9)),
    "plain pixels": replace(SOUND, objective=ObjectiveConfig(normalize_target=False)),
    "whole images": replace(SOUND, augment=AugmentConfig(crop_scale=(1, 1))),
    "Muon": replace(SOUND, optim=MUON),
    "Muon, mask 0.5": replace(SOUND, optim=MUON, objective=ObjectiveConfig(mask_ratio=0.5)),
}


def probe(encoder: Encoder, data: Set) -> float:
    """Return the accuracy of a logistic regression on few labels, the mean of its draws."""
    parts = [LabelledImages.of(source) for source in data]
    known, asked = (
        encoder_features(encoder, part.batches(), pools=["mean"])["mean"] for part in parts
    )
    scores = []
    for draw in range(DRAWS):
        few = labels_per_class(parts[0].labels, LABELS, seed=0, draw=draw)
        train, test = standardized(known[few], asked)
        scores.append(logistic_accuracy(train, parts[0].labels[few], test, parts[1].labels))
    return float(np.mean(scores))


def measure(name: str, setting: str, folder: Path, out: Path) -> dict[str, Any]:
    """Train one setting on one set in a new folder; return its figures and its score."""
    data, config = SETS[name](folder), SETTINGS[setting]
    config = replace(config, model=network(data.train.images.shape[1]))
    run = pretrain(config, data=data.train.images, out=out, quiet=True)
    row = read_rows(out / "health.jsonl")[-1]
    figures = {figure: row[figure] for figure in LAST} | {"training loss": run.loss}
    score = probe(run.model.encoder.eval(), data)
    return {"name": f"{name}: {setting}", "figures": figures, "score": score}


def correlations(runs: dict[str, dict[str, Any]]) -> dict[str, list[float]]:
    """Return the rank correlation of each figure with the score, on each set in turn."""
    found: dict[str, list[float]] = {figure: [] for figure in (*LAST, "training loss")}
    for name in SETS:
        own = [runs[key] for setting in SETTINGS if (key := f"{name}: {setting}") in runs]
        scores = [run["score"] for run in own]
        for figure, values in found.items():
            values.append(spearmanr([run["figures"][figure] for run in own], scores).statistic)
    return found


def table(runs: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the table, in Markdown, the chosen figure first."""
    found = correlations(runs)
    strength = {figure: abs(values[0] + values[1]) / 2 for figure, values in found.items()}
    yield f"| figure | {' | '.join(SETS)} |"
    yield "|---|" + "---|" * len(SETS)
    for figure in sorted(found, key=lambda figure: -strength[figure]):
        yield f"| {figure} | " + " | ".join(f"{value:+.2f}" for value in found[figure]) + " |"


def main(out: Path, folder: Path) -> None:
    """Run what is missing and print the table."""
    path = out / "settings.jsonl"
    for name in SETS:
        for setting in SETTINGS:
            if f"{name}: {setting}" in kept(path):
                continue
            run = Path(tempfile.mkdtemp())
            keep(path, found := measure(name, setting, folder, run))
            shutil.rmtree(run)
            print(found["name"], f"{found['score']:.3f}", flush=True)
    print("\n".join(table(kept(path))))
