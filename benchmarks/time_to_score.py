"""Processor time to a probe score: `python -m benchmarks.time_to_score FOLDER SEED ...`.

A textbook loop over the built-in images, with the paper's recipe scaled down to a small network,
sets the score; the same recipe in `mae`, and the demo's at less than its length, are to reach it.
One thread each, two side by side; every run's figures are kept in FOLDER.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import nn

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
EPOCHS = 6
"""Of the demo's recipe; of 30,000 images."""
COLUMNS = ("k-NN", "logistic, 10,000 labels")


def textbook(seed: int, folder: Path) -> tuple[Encoder, float]:
    """Train the textbook loop, and give its encoder and the seconds."""
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
        loss = model(images, torch.rand(len(images), config.num_patches))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return _encoder_of(model, config), time.process_time() - began


def ours(config: PretrainConfig, seed: int, folder: Path) -> tuple[Encoder, float]:
    """Train by a recipe, everything that a run writes included."""
    began = time.process_time()
    run = pretrain(replace(config, seed=seed), data="fashion-mnist", out=folder, quiet=True)
    return run.model.encoder, time.process_time() - began


def _plain_model(pixels: PixelConfig) -> ModelConfig:
    return replace(DEMO.model, pixels=pixels)


def _plain() -> PretrainConfig:
    """Give the textbook's recipe as one of ours."""
    how = replace(DEMO, steps=SAMPLES // BATCH, epochs=10, batch=BATCH, micro_batch=None)
    return replace(how, optim=TEXTBOOK, objective=ObjectiveConfig())


def _shorter() -> PretrainConfig:
    optim = replace(DEMO.optim, warmup_epochs=DEMO.warmup_share * EPOCHS)
    return replace(DEMO, epochs=EPOCHS, micro_batch=None, optim=optim)  # one thread, one part


def _encoder_of(model: TextbookMAE, config: ModelConfig) -> Encoder:
    """Give what the textbook learnt as an encoder of ours, to be read in the same way."""
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
    """Read the features as the demo does, in per cent."""
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


SIDES: dict[str, Callable[[int, Path], tuple[Encoder, float]]] = {
    "textbook": textbook,
    f"demo, {EPOCHS} epochs": partial(ours, _shorter()),
    "the same recipe": partial(ours, _plain()),
}


def measure(folder: Path, name: str, seed: int) -> None:
    """Train one side with one seed and keep what came out; found again where it is there."""
    torch.set_num_threads(1)
    kept = _file(folder, name, seed)
    if not kept.exists():
        encoder, seconds = SIDES[name](seed, kept.with_suffix(""))
        kept.write_text(json.dumps({"seconds": seconds, "scores": _scores(encoder.eval())}))
    print(name, seed, kept.read_text(), flush=True)


def _file(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}.json"


def main(folder: Path, seeds: Sequence[int]) -> None:
    """Run what is missing, two at a time, and print the table."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for done in [pool.submit(measure, folder, name, s) for name in SIDES for s in seeds]:
            done.result()
    print("\nside, processor seconds, " + ", ".join(COLUMNS) + " (mean and each seed)")
    for name in SIDES:
        kept = [json.loads(_file(folder, name, seed).read_text()) for seed in seeds]
        columns = [[each["seconds"] for each in kept]]
        columns += [[each["scores"][i] for each in kept] for i in range(len(COLUMNS))]
        print(name, *(_written(values) for values in columns), sep="  ")


def _written(values: Sequence[float]) -> str:
    each = " ".join(f"{value:.1f}" for value in values)
    return f"{statistics.mean(values):.1f} ({each})"


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(word) for word in sys.argv[2:]])
