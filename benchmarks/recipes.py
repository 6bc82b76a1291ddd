"""Choose the table of the recipe `folder`: `python -m benchmarks.recipes OUT [NAME=FOLDER ...]`.

For each data set and each number of minutes on 2 cores: train a few candidates, compare them by
probes with few labels on a validation part, and report the best one on the test part beside the
recipe for large sets, raw pixels and random encoders. The built-in images and a synthetic set (6
channels, 16 bits) take part too; FOLDER holds train/, validation/ and test/ with a folder for
each class, and NAME=IMAGES,FOLDER trains on IMAGES and reads the labels of FOLDER.

Minutes become steps by arithmetic, not by the clock: a machine that is shared would otherwise
decide which candidate is best. Processor seconds of a step are measured with the candidates in
turn, on one thread; 2 cores hold 2 x 60 x 0.9 of them a minute.

Every finished run is a line of OUT/results.jsonl; started again, it continues.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from mae.config.model import ModelConfig
from mae.config.run import AugmentConfig, ObjectiveConfig, OptimConfig, PretrainConfig
from mae.data.batching.batch import training_batch
from mae.data.sources.fashion_mnist import fashion_mnist
from mae.data.sources.source import ArraySource, FolderSource, Source
from mae.data.sources.subset import subset
from mae.data.survey import side_and_channels
from mae.evaluation.features import encoder_features, pixel_features, standardized
from mae.evaluation.inputs import LabelledBatch, map_images
from mae.evaluation.knn import knn_accuracy
from mae.evaluation.logistic import logistic_accuracy
from mae.evaluation.split import labels_per_class
from mae.jobs.pretrain import pretrain
from mae.model.create import create
from mae.model.encoder import Encoder, Pool
from mae.progress import Progress
from mae.recipes.catalogue import FOLDER
from mae.train.measure import discarded_steps
from mae.train.resolve import batch_plan, resolve
from mae.weights.load import load_encoder

CORES, SHARE = 2, 0.9
"""Cores of a budget, and the fraction of their time that trains."""
LABELS, DRAWS, MOST_TESTED = 50, 3, 1000
POOLS: tuple[Pool, ...] = ("mean", "cls", "grid")
STEP_ROUNDS = 5
PIXELS = 18  # edge of raw pixels, as `mae probe` has of 3 channels

Record = dict[str, Any]


LARGER = (192, 6, (128, 2))


class Candidate(NamedTuple):
    """A configuration as a function of the shorter side of the images, in pixels."""

    why: str
    width: int = 96
    depth: int = 4
    decoder: tuple[int, int] = (64, 2)
    coarse: bool = False
    """Whether patches are half as large again."""
    eps: float = 1e-3
    batch: int = 64
    lr: float = 0.012
    close: bool = False
    """Whether the smallest crop has as many pixels as the network sees; else 20 % of the area."""

    def config(self, side: int) -> PretrainConfig:
        """Return the run on images of this shorter side, in pixels."""
        edge = min(96, side)
        patch = (8 if edge >= 64 else 4) * (3 if self.coarse else 2) // 2
        edge, width = edge // patch * patch, self.decoder[0]
        low = min(0.2, (edge / side) ** 2) if self.close else 0.2
        return PretrainConfig(
            model=ModelConfig(
                image_size=(edge, edge), patch_size=patch,
                width=self.width, depth=self.depth, num_heads=self.width // 32,
                decoder_width=width, decoder_depth=self.decoder[1], decoder_heads=width // 32,
            ),
            objective=ObjectiveConfig(target_eps=self.eps),
            batch=self.batch,
            micro_batch=min(32, self.batch),
            optim=OptimConfig(name="muon", lr=self.lr, warmup_epochs=1, decay_tokens=False),
            epochs=10,  # a tenth of the steps is warm-up
            augment=AugmentConfig(crop_scale=(low, 1.0)),
        )  # fmt: skip


CANDIDATES = {
    "96x4": Candidate("many steps of a small network: three times those of 192x6"),
    "96x4-coarse": Candidate("a patch of 12 instead of 8: half of the tokens", coarse=True),
    "96x4-1e-6": Candidate("the published target eps, for patches with texture", eps=1e-6),
    "96x4-close": Candidate(
        "large images cropped to as few pixels as the network sees", close=True
    ),
    "192x6": Candidate("a larger network, ahead of raw pixels after 7 minutes", *LARGER),
    "192x6-coarse": Candidate("the same of half the tokens", *LARGER, coarse=True),
}
TODAY = "vit-s/16"
"""Name of the recipe for large sets, which is `folder` where nothing is chosen."""


class DataSet(NamedTuple):
    """Images to train on, and labelled images of a training, validation and test part."""

    name: str
    images: Source
    train: Source
    parts: dict[str, Source]
    side: int
    """Shorter side of the images, in pixels."""

    def config(self, candidate: str) -> PretrainConfig:
        """Return the configuration of a candidate."""
        large = candidate == TODAY
        config = FOLDER if large else CANDIDATES[candidate].config(self.side)
        return replace(config, threads=1, device="cpu", precision="float32")


def built_in() -> DataSet:
    """Return the built-in images, of which the last 5,000 for training are the validation part."""
    train, test = fashion_mnist("train"), fashion_mnist("test")
    ids = np.arange(len(train))
    own, validation = subset(train, ids[:25_000]), subset(train, ids[25_000:])
    return DataSet("fashion-mnist", own, own, {"validation": validation, "test": test}, 28)


def textures(*, seed: int = 0, edge: int = 64, classes: int = 8) -> DataSet:
    """Return synthetic textures of 6 channels and 16 bits.

    A class is an angle and two wavelengths; phase, small turns, the strength of the channels and
    noise of half the contrast vary within it.
    """

    def draw(count: int, stream: int) -> Source:
        random = np.random.default_rng((seed, stream))
        labels = np.arange(count, dtype=np.int64) % classes
        y, x = np.mgrid[:edge, :edge].astype(np.float32)
        images = np.empty((count, edge, edge, 6), np.uint16)
        for image, label in zip(images, labels, strict=True):
            angle = np.pi * (label // 2) / (classes // 2) + random.normal(0, 0.12)
            along = np.cos(angle) * x + np.sin(angle) * y
            waves = [
                np.sin(2 * np.pi * along / length + random.uniform(0, 6.3))
                for length in ((5.0, 11.0) if label % 2 else (7.0, 17.0))
            ]
            strength = random.uniform(0.3, 1.0, (2, 6)).astype(np.float32)
            mixed = np.einsum("wij,wc->ijc", np.stack(waves), strength)
            mixed += random.normal(0, 0.7, mixed.shape)
            image[:] = np.clip(20_000 + 6_000 * mixed, 0, 65_535)
        return ArraySource(images, labels=labels, class_names=[f"{c}" for c in range(classes)])

    train = draw(1600, 0)
    return DataSet("textures", train, train, {"validation": draw(400, 1), "test": draw(400, 2)}, 64)


BUILT_IN = {"fashion-mnist": built_in, "textures": textures}


def of_folder(text: str) -> DataSet:
    """Return a data set given as NAME=FOLDER or NAME=IMAGES,FOLDER."""
    name, _, paths = text.partition("=")
    images, _, labelled = paths.rpartition(",")
    train = FolderSource(Path(labelled, "train"))
    parts = {part: FolderSource(Path(labelled, part)) for part in ("validation", "test")}
    own = FolderSource(images) if images else train
    return DataSet(name, own, train, dict(parts), side_and_channels(own)[0])


class Results:
    """The records of finished work, one line each, by key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self.records: dict[str, Record] = {}
        for line in lines:
            with suppress(ValueError):  # cut short by a kill
                record = json.loads(line)
                self.records[record["key"]] = record

    def get(self, key: Sequence[object], make: Callable[[], Record]) -> Record:
        """Return the record of a key; it is made and written where it is missing."""
        name = " ".join(map(str, key))
        if name not in self.records:
            print(f"{time.strftime('%H:%M:%S')} {name} ...", flush=True)
            self.records[name] = {"key": name, **make()}
            with self.path.open("a") as file:
                file.write(f"\n{json.dumps(self.records[name])}")
        return self.records[name]


def step_seconds(data: DataSet, names: Sequence[str]) -> Record:
    """Measure processor seconds of a step, reading included: the candidates in turn."""
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn, name in product(range(1 + STEP_ROUNDS), names):
        config = replace(data.config(name), batch=8 if name == TODAY else data.config(name).batch)
        resolved = resolve(replace(config, micro_batch=None), data.images)
        plan = batch_plan(resolved.config, data.images, resolved.kind)
        model = create(resolved.config.model, objective=resolved.config.objective)
        with discarded_steps(resolved.config, model) as step:
            step(training_batch(plan, 0), 0)  # allocates
            began = time.process_time()
            for number in (1, 2):
                step(training_batch(plan, turn * 2 + number), 0)
            scale = data.config(name).batch / config.batch
            taken[name].append((time.process_time() - began) / 2 * scale)
    return {"seconds": {name: median(values[1:]) for name, values in taken.items()}}


def features(
    data: DataSet, part: str, encoder: Encoder, *, pixels: bool = False
) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """Return ids, classes and features of the drawn training images, and of a part's images."""

    def compute(batch: LabelledBatch) -> list[NDArray[Any]]:
        if pixels:
            size = min(PIXELS, data.side), min(PIXELS, data.side)
            raw = pixel_features([F.adaptive_avg_pool2d(batch.images.float(), size)])
            return [batch.ids, batch.labels, raw]
        found = encoder_features(encoder, [batch.images], pools=POOLS)
        return [batch.ids, batch.labels, *(found[pool] for pool in POOLS)]

    with Progress(quiet=True) as progress:
        read = partial(map_images, compute, encoder, batch=64, progress=progress, label="image")
        tested = data.parts[part]
        few = np.linspace(0, len(tested) - 1, min(MOST_TESTED, len(tested))).astype(np.int64)
        chosen = np.unique(np.concatenate(draws(data)))
        return read(data.train, chosen), read(tested, few)


def draws(data: DataSet) -> list[NDArray[np.int64]]:
    """Return the ids of the labelled training images of each draw."""
    assert data.train.labels is not None
    fewest = int(np.bincount(data.train.labels).min())
    count = min(LABELS, fewest)
    return [labels_per_class(data.train.labels, count, seed=0, draw=draw) for draw in range(DRAWS)]


def scores(data: DataSet, part: str, encoder: Encoder, *, pixels: bool = False) -> Record:
    """Return k-NN and logistic accuracy of each pool in %, mean over the draws of labels."""
    (ids, labels, *known), (_, truth, *tested) = features(data, part, encoder, pixels=pixels)
    found: Record = {}
    for pool, x, y in zip(("pixels",) if pixels else POOLS, known, tested, strict=True):
        each = []
        for draw in draws(data):
            rows = np.isin(ids, draw)
            a, b = standardized(x[rows], y)
            knn = knn_accuracy(a, labels[rows], b, truth)
            each.append((100 * knn, 100 * logistic_accuracy(a, labels[rows], b, truth)))
        found[pool] = [round(value, 2) for value in np.mean(each, axis=0).tolist()]
    return {"scores": found}


def trained(out: Path, data: DataSet, candidate: str, minutes: float, seed: int, *,
            steps: int) -> Encoder:  # fmt: skip
    """Train a candidate, or load it; a stopped run is resumed."""
    folder = out / f"{data.name}-{candidate.replace('/', '-')}-{minutes:g}-{seed}"
    config = replace(data.config(candidate), steps=steps, seed=seed, save_every_steps=200)
    pretrain(config, data=data.images, out=folder, quiet=True, based_on=candidate)
    return load_encoder(folder)


def compare(out: Path, data: DataSet, asked: argparse.Namespace) -> None:
    """Choose among the candidates of a data set, and report each number of minutes."""
    results = Results(out / "results.jsonl")
    # Of candidates that are the same for these images, the first.
    names = list({data.config(name): name for name in reversed(asked.candidates)}.values())[::-1]
    timed = [*names, TODAY] if asked.today else names
    seconds = results.get((data.name, "step", *timed), lambda: step_seconds(data, timed))["seconds"]

    def run(name: str, part: str, minutes: float, seed: int = 0) -> Record:
        steps = max(1, int(minutes * CORES * 60 * SHARE / seconds[name]))

        def make() -> Record:
            began = time.process_time()
            encoder = trained(out, data, name, minutes, seed, steps=steps)
            spent = time.process_time() - began
            return {"steps": steps, "seconds": spent, **scores(data, part, encoder)}

        return results.get((data.name, name, part, minutes, seed), make)

    tried = {name: run(name, "validation", asked.choose) for name in names}
    chosen = max(names, key=lambda name: max(map(fmean, tried[name]["scores"].values())))
    print(f"{data.name}: chosen {chosen}, {CANDIDATES[chosen].why}")
    for minutes in asked.minutes:
        for seed in range(asked.seeds if minutes == min(asked.minutes) else 1):
            run(chosen, "test", minutes, seed)
        if minutes in asked.today:
            run(TODAY, "test", minutes)
    config = resolve(data.config(chosen), data.images).config
    random = create(config.model, seed=0).encoder.eval()
    for part in data.parts:
        results.get((data.name, "random", part), partial(scores, data, part, random))
        results.get((data.name, "pixels", part), partial(scores, data, part, random, pixels=True))
    for line in rows(results, data.name):
        print(line)


def rows(results: Results, name: str) -> Iterator[str]:
    """Return the lines of a table in Markdown: k-NN and logistic by pool."""
    yield "| data, candidate, part, minutes, seed | steps | mean | cls | grid |"
    yield "|---|---|---|---|---|"
    for key, record in results.records.items():
        if key.split()[0] != name or "scores" not in record:
            continue
        found = record["scores"]
        cells = [", ".join(f"{v:.1f}" for v in found.get(pool, ())) for pool in POOLS]
        if "pixels" in found:
            cells[-1] = ", ".join(f"{v:.1f}" for v in found["pixels"])
        yield f"| {key} | {record.get('steps', '')} | {' | '.join(cells)} |"


def main(words: Sequence[str] | None = None) -> None:
    """Measure every data set that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("folders", nargs="*", type=of_folder, help="NAME=[IMAGES,]FOLDER")
    parser.add_argument("--choose", type=float, default=3, help="minutes of each candidate")
    parser.add_argument("--minutes", type=float, nargs="*", default=[3, 15, 60])
    parser.add_argument("--today", type=float, nargs="*", default=[3, 15, 60])
    parser.add_argument("--seeds", type=int, default=3, help="of the shortest minutes")
    parser.add_argument("--candidates", nargs="*", default=[*CANDIDATES], choices=CANDIDATES)
    parser.add_argument("--built-in", nargs="*", default=[*BUILT_IN], choices=BUILT_IN)
    asked = parser.parse_args(words)
    torch.set_num_threads(1)
    for data in (*asked.folders, *(BUILT_IN[name]() for name in asked.built_in)):
        compare(asked.out, data, asked)


if __name__ == "__main__":
    main()
