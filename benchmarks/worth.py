"""`mae worth` with few labels against the truth by all labels.

`python -m benchmarks.worth OUT [--minutes M] DATA ...` compares the starts on each data set
("fashion-mnist" is built in) by `mae worth`, then with all labels, then on shuffled labels. Each
data set is given the MAE of the one before it as weights. A repeated call resumes; the table is
printed and written to OUT/worth.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mae.atomic import write_atomic, write_json_atomic
from mae.config.run import AugmentConfig, OptimConfig, PretrainConfig
from mae.config.sizes import model_config
from mae.data.sources.open import BUILT_IN, data_name
from mae.evaluation.features import LabelledImages
from mae.evaluation.labelled_data import Part, labelled
from mae.evaluation.paired import Correct, difference, verdicts
from mae.evaluation.split import Ids, fraction_of_labels, labels_per_class
from mae.evaluation.starts import (
    SEEDS,
    Columns,
    Drawn,
    Draws,
    correct_of,
    encode_baselines,
    encode_start,
    read_columns,
    scorer,
)
from mae.evaluation.supervised import affordable_steps, supervised_config, supervised_predictions
from mae.jobs.worth import RANDOM, RAW, SCRATCH, SUPERVISED, Worth, worth
from mae.model.create import create
from mae.recipes.catalogue import DEMO
from mae.weights.load import load_encoder

PER_CLASS, DRAWS, SHUFFLES = 10, 5, 20
MOST_LABELS = 1000
"""Labels of the truth, of data that have more."""
SMALL = PretrainConfig(
    model=model_config(
        "vit-ti/8", image_size=64, width=96, depth=4, num_heads=3,
        decoder_width=64, decoder_depth=2, decoder_heads=2,
    ),
    batch=64,
    micro_batch=32,
    optim=OptimConfig(lr=0.012, warmup_epochs=40, name="muon"),
    augment=AugmentConfig(crop_scale=(0.3, 1.0), flip=0.5),
)  # fmt: skip
"""A network that learns within minutes on one core."""


def compare(data: str, out: Path, *, minutes: float, weights: Sequence[str]) -> dict[str, Any]:
    """Compare the starts on one data set: few labels, all labels, shuffled labels."""
    file = out / "truth.json"
    recipe = DEMO if data == BUILT_IN else SMALL
    found = worth(
        data=data, out=out / "worth", labels=f"{PER_CLASS}/class", draws=DRAWS, minutes=minutes,
        weights=weights, recipe=replace(recipe, device="cpu"),
    )  # fmt: skip
    if not file.exists():
        features, truth = _with_all_labels(data, found, weights, minutes=minutes)
        helps = list(_helped_on_shuffled(data, features))
        pairs = list(_pairs(found, truth))
        accuracies = {name: float(each.mean()) for name, each in truth.items()}
        values = {"all_labels": accuracies, "pairs": pairs, "shuffled": helps}
        write_json_atomic(file, values)
    kept: dict[str, Any] = json.loads(file.read_bytes())
    return kept | {"few": found}


def _with_all_labels(
    data: str, found: Worth, weights: Sequence[str], *, minutes: float
) -> tuple[dict[str, list[Columns]], dict[str, Correct]]:
    """Return the features of every start, and what it classifies correctly with all labels."""
    parts = labelled(data, seed=0, weights=weights[0] if weights else None)
    train = _at_most(parts.train, MOST_LABELS)
    with np.load(found.path / "features" / "baselines.npz") as kept:
        test = Part(parts.test.source, kept["1"])
    paths = {SCRATCH: found.path / "scratch"}
    for i, path in enumerate(weights):
        paths |= {f"{Path(path).name}, frozen": Path(path),
                  f"{Path(path).name}, continued": found.path / f"continued-{i}"}  # fmt: skip
    encoders = {name: load_encoder(path).eval() for name, path in paths.items()}
    pool = found.comparison.pool
    read = {"training image": train, "test image": test}
    model = encoders[SCRATCH].config
    random = [create(model, seed=seed).encoder.eval() for seed in range(SEEDS)]
    features = {
        name: read_columns(
            encode_start(encoder, pool), encoder, read, quiet=False,
            file=found.path.parent / "features" / f"{number}.npz",
        )
        for number, (name, encoder) in enumerate(encoders.items())
    }  # fmt: skip
    file = found.path.parent / "features" / "baselines.npz"
    bars = read_columns(encode_baselines(random, pool), random[0], read, file=file, quiet=False)
    every = Draws(float(len(train.ids)), (train.ids,))
    to = scorer(Drawn(train, test, (every,), len(train.ids)), (bars, *features.values()))
    truth = {RAW: to.score_seeds(bars, [0])[0], RANDOM: to.score_seeds(bars, [1])[0]}
    truth |= {name: to.score_seeds(each, [0])[0] for name, each in features.items()}
    images = read_columns(
        lambda batch: [batch.images.numpy()], random[0], read, file=None, quiet=False
    )
    known = LabelledImages(torch.from_numpy(images[0].of(to.drawn)[0]), to.drawn_y)
    asked = LabelledImages(torch.from_numpy(images[1].of(to.test)[0]), to.test_y)
    classes = len(train.source.class_names)
    config = supervised_config(model, classes=classes, labels=len(known.labels))
    share = 60 * minutes / (2 + len(weights))
    steps = affordable_steps(random[0], config, train=known, seconds=share)
    predicted = supervised_predictions(
        random[0], replace(config, steps=steps), train=known, test=asked,
        file=found.path.parent / "supervised.json",
    )  # fmt: skip
    truth[SUPERVISED] = (predicted.classes == asked.labels)[None].astype(float)
    pixels = [Columns(part.ids, part.columns[:1]) for part in bars]
    first = [Columns(part.ids, part.columns[1:2]) for part in bars]
    return {RAW: pixels, RANDOM: first, **features}, truth


def _at_most(part: Part, count: int) -> Part:
    if len(part.ids) <= count:
        return part
    assert part.source.labels is not None
    fraction = count / len(part.ids)
    return Part(
        part.source,
        part.ids[fraction_of_labels(part.source.labels[part.ids], fraction, seed=0)],
    )


def _pairs(found: Worth, truth: Mapping[str, Correct]) -> Iterator[dict[str, Any]]:
    """Yield each pair of starts: order with few labels, difference with all labels."""
    few = {s.name: s for s in (*found.comparison.baselines, *found.comparison.starts)}
    for a, b in combinations(few, 2):
        with_all = difference(truth[a], truth[b])
        yield {
            "pair": [a, b],
            "few": few[a].accuracy - few[b].accuracy,
            "all": with_all.mean,
            "std_error": with_all.std_error(),
        }


def _helped_on_shuffled(data: str, features: Mapping[str, list[Columns]]) -> Iterator[bool]:
    """Yield whether any start "helps" after all labels were shuffled, SHUFFLES times."""
    parts = labelled(data, seed=0)
    drawn, test = (features[RAW][i].ids for i in (0, 1))
    rows = {name: [part.of(ids)[0] for part, ids in zip(each, (drawn, test), strict=True)]
            for name, each in features.items()}  # fmt: skip
    for shuffle in range(SHUFFLES):
        rng = np.random.default_rng(shuffle)
        labels, asked = (
            rng.permutation(_labels(part, ids))
            for part, ids in ((parts.train, drawn), (parts.test, test))
        )
        ids = (labels_per_class(labels, PER_CLASS, seed=shuffle, draw=d) for d in range(DRAWS))
        draws = Draws(0.0, tuple(ids))
        right = {
            name: correct_of([train], labels, [tested], asked, draws=draws)
            for name, (train, tested) in rows.items()
        }
        bars = {name: right.pop(name) for name in (RAW, RANDOM)}
        yield any(each.answer == "helps" for each in verdicts(right, bars).values())


def _labels(part: Part, ids: Ids) -> Any:
    assert part.source.labels is not None
    return part.source.labels[ids]


def table(found: Mapping[str, dict[str, Any]]) -> str:
    """Return the results as markdown."""
    lines = ["| data, start | few labels | verdict | all labels |", "|---|---|---|---|"]
    agreed = clear = 0
    for data, values in found.items():
        comparison = values["few"].comparison
        lines.append(f"| **{data}**, {comparison.labels[-1]:.0f} labels | | | |")
        for start in (*comparison.baselines, *comparison.starts):
            answer = start.verdict.answer if start.verdict else ""
            accuracy = f"{100 * start.accuracy:.1f} ± {100 * start.spread:.1f}"
            lines.append(
                f"| {start.name} | {accuracy} | {answer} | "
                f"{100 * values['all_labels'][start.name]:.1f} |"
            )
        for pair in values["pairs"]:
            if abs(pair["all"]) > 2 * pair["std_error"]:
                clear += 1
                agreed += pair["few"] * pair["all"] > 0
    total = sum(len(values["pairs"]) for values in found.values())
    lines += [
        "",
        f"Same order with few labels as with all: {agreed} of {clear} pairs whose difference with "
        f"all labels exceeds two standard errors ({total} pairs in all).",
    ]
    for data, values in found.items():
        lines.append(
            f"Shuffled labels, {data}: some start helps in {sum(values['shuffled'])} of "
            f"{len(values['shuffled'])}."
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Compare on every data set given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--minutes", type=float, default=6.0)
    asked = parser.parse_args()
    found, weights = dict[str, dict[str, Any]](), list[str]()
    for data in asked.data:
        name = data_name(data)
        found[name] = compare(data, asked.out / name, minutes=asked.minutes, weights=weights)
        print(found[name]["few"].comparison.answer, flush=True)
        link = asked.out / f"MAE of {name}"
        if not link.is_symlink():
            link.symlink_to(Path(name, "worth", "scratch"))
        weights = [str(link)]
    text = table(found)
    write_atomic(asked.out / "worth.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
