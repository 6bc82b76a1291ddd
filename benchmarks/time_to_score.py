"""Processor time to a probe score: `python -m benchmarks.time_to_score FOLDER SEED ...`.

A textbook loop over the built-in images, with the paper's recipe scaled down to a small network,
sets the score. It is compared with the same recipe in `mae`, and with the demo's recipe at less
than its length, each in float32 and, where the processor multiplies it, in bf16 (the textbook loop
under torch.autocast). `--precision` chooses one. One thread each, two runs side by side; FOLDER
keeps the figures of every run.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import nn

from benchmarks.processor import PRECISIONS, precisions_of, print_processor, this_processor
from benchmarks.textbook import Images as TextbookImages
from benchmarks.textbook import TextbookMAE, textbook_batches
from mae.config.model import ModelConfig
from mae.config.run import ObjectiveConfig, OptimConfig, PixelConfig, PretrainConfig
from mae.data.decoding.decode import PixelKind
from mae.data.sources.fashion_mnist import fashion_mnist
from mae.data.survey import measure_pixels
from mae.evaluation.features import LabelledImages, encoder_features, standardized
from mae.evaluation.knn import knn_accuracy
from mae.evaluation.logistic import logistic_accuracy
from mae.evaluation.split import labels_per_class
from mae.jobs.pretrain import pretrain
from mae.model.create import create
from mae.model.encoder import Encoder
from mae.recipes.catalogue import DEMO

SAMPLES = 300_000
TEXTBOOK = OptimConfig(lr=0.024, warmup_epochs=1)  # 3e-3 at batch 32, a tenth of it warm-up
BATCH = 32
EPOCHS = 6  # of the demo's recipe
COLUMNS = ("k-NN", "logistic, 10,000 labels")


def textbook(precision: str, seed: int, folder: Path) -> tuple[Encoder, float]:
    """Train the textbook loop, and return its encoder and the seconds."""
    del folder
    source, kind = fashion_mnist("train"), PixelKind("uint8", 1)
    mean, std = measure_pixels(source, kind=kind)
    config = _plain_model(PixelConfig(mean=mean, std=std))
    torch.manual_seed(seed)
    model, steps = TextbookMAE(config), SAMPLES // BATCH
    dataset = TextbookImages(source.images, mean=mean[0], std=std[0])
    batches = textbook_batches(dataset, batch=BATCH, workers=0)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.05)
    peak, warmup = TEXTBOOK.peak_lr(BATCH), steps // 10
    began = time.process_time()
    for step in range(steps):
        share = (step - warmup) / (steps - warmup)
        rate = step / warmup if step < warmup else (1 + math.cos(math.pi * share)) / 2
        for group in optimizer.param_groups:
            group["lr"] = peak * rate
        images = next(batches)
        with torch.autocast("cpu", torch.bfloat16, precision == "bf16"):
            loss = model(images, torch.rand(len(images), config.num_patches))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return _encoder_of(model, config), time.process_time() - began


def ours(config: PretrainConfig, precision: str, seed: int, folder: Path) -> tuple[Encoder, float]:
    """Train by a recipe, everything that a run writes included."""
    began = time.process_time()
    config = replace(config, seed=seed, precision=precision)  # type: ignore[arg-type]
    run = pretrain(config, data="fashion-mnist", out=folder, quiet=True)
    return run.model.encoder, time.process_time() - began


def _plain_model(pixels: PixelConfig) -> ModelConfig:
    return replace(DEMO.model, pixels=pixels)


def _plain() -> PretrainConfig:
    """Return the textbook's recipe as one of ours."""
    how = replace(DEMO, steps=SAMPLES // BATCH, epochs=10, batch=BATCH, micro_batch=None)
    return replace(how, optim=TEXTBOOK, objective=ObjectiveConfig())


def _shorter() -> PretrainConfig:
    optim = replace(DEMO.optim, warmup_epochs=DEMO.warmup_share * EPOCHS)
    return replace(DEMO, epochs=EPOCHS, micro_batch=None, optim=optim)  # one thread, one part


def _encoder_of(model: TextbookMAE, config: ModelConfig) -> Encoder:
    """Return an encoder of ours with the textbook's weights, so that one function scores both."""
    encoder = create(config).encoder
    encoder.patch_embed.proj = model.proj
    encoder.cls_token = model.cls_token
    encoder.pos_embed = model.pos
    encoder.norm = model.norm
    parts: list[tuple[nn.Module, nn.Module]] = []
    for own, block in zip(encoder.blocks, model.blocks, strict=True):
        parts += [(own.norm1, block.norm1), (own.norm2, block.norm2)]  # type: ignore[arg-type]
        parts += [(own.attn.qkv, block.attn.qkv), (own.attn.proj, block.attn.proj)]  # type: ignore[union-attr, arg-type]
        parts += [(own.mlp.fc1, block.mlp[0]), (own.mlp.fc2, block.mlp[2])]  # type: ignore[union-attr, index]
    for own_part, part in parts:
        own_part.load_state_dict(part.state_dict())
    return encoder


def _scores(encoder: Encoder) -> list[float]:
    """Return the accuracies of `COLUMNS` on the test images, in per cent, as the demo does."""
    source = fashion_mnist("train")
    assert source.labels is not None
    few = labels_per_class(source.labels, 1000, seed=0)
    train, test = LabelledImages.of(source).only(few), LabelledImages.of(fashion_mnist("test"))
    known, asked = (
        encoder_features(encoder, part.batches(), pools=["grid"])["grid"] for part in (train, test)
    )
    known, asked = standardized(known, asked)
    parts = known, train.labels, asked, test.labels
    return [100 * knn_accuracy(*parts), 100 * logistic_accuracy(*parts)]


SIDES: dict[str, Callable[[str, int, Path], tuple[Encoder, float]]] = {
    "textbook": textbook,
    "the same recipe in mae": partial(ours, _plain()),
    f"demo's recipe, {EPOCHS} epochs": partial(ours, _shorter()),
}


def measure(folder: Path, name: str, precision: str, seed: int) -> None:
    """Train one side with one seed and keep its figures, unless an earlier call did."""
    torch.set_num_threads(1)
    kept = _file(folder, name, precision, seed)
    if not kept.exists():
        run = kept.with_suffix("")
        shutil.rmtree(run, ignore_errors=True)  # of a killed call: resumed, it would seem fast
        encoder, seconds = SIDES[name](precision, seed, run)
        values = {"seconds": seconds, "scores": _scores(encoder.eval())}
        kept.write_text(json.dumps(values | {"processor": this_processor()}))
    print(name, precision, seed, kept.read_text(), flush=True)


def _file(folder: Path, name: str, precision: str, seed: int) -> Path:
    words = "".join(letter if letter.isalnum() else " " for letter in name).split()
    return folder / f"{'-'.join(words)}-{precision}-{seed}.json"


def main(words: Sequence[str]) -> None:
    """Run what is missing, two at a time, and print the table."""
    asked = _arguments(words)
    print_processor()
    precisions = precisions_of(asked.precision)
    folder, seeds = asked.folder, asked.seeds
    folder.mkdir(parents=True, exist_ok=True)
    sides = [(name, precision) for name in SIDES for precision in precisions]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        runs = [pool.submit(measure, folder, *side, s) for side in sides for s in seeds]
        for run in runs:
            run.result()
    print("\n" + "\n".join(table(folder, sides, seeds)))


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.time_to_score")
    parser.add_argument("folder", type=Path)
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--precision", choices=[*PRECISIONS, "both"], default="both")
    return parser.parse_args(words)


def table(folder: Path, sides: Sequence[tuple[str, str]], seeds: Sequence[int]) -> Iterator[str]:
    """Yield the lines of the table; each side's time is compared with that of the first."""
    columns = ("side", "precision", "processor seconds", "of the first row", *COLUMNS)
    yield " | ".join(columns) + " (mean and each seed)"
    first: list[float] = []
    for side in sides:
        kept = [json.loads(_file(folder, *side, seed).read_text()) for seed in seeds]
        seconds = [each["seconds"] for each in kept]
        first = first or seconds
        ratios = [own / other for own, other in zip(seconds, first, strict=True)]
        scores = [[each["scores"][i] for each in kept] for i in range(len(COLUMNS))]
        cells = (_written(seconds, 0), _written(ratios, 2), *(_written(s, 1) for s in scores))
        yield " | ".join((*side, *cells))


def _written(values: Sequence[float], digits: int) -> str:
    each = " ".join(f"{value:.{digits}f}" for value in values)
    return f"{statistics.mean(values):.{digits}f} ({each})"


if __name__ == "__main__":
    main(sys.argv[1:])
