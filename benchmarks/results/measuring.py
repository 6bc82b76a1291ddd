"""What each encoder is worth with few labels: one function a cell, plain values out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.results.pretraining import (
    HALVES,
    half_source,
    pretrain_half,
    pretrain_whole,
    supervise_half,
)
from mae.config.run import FinetuneConfig
from mae.data.sources.fashion_mnist import fashion_mnist
from mae.evaluation.features import (
    Array,
    LabelledImages,
    encoder_features,
    pixel_features,
    standardized,
)
from mae.evaluation.few_shot import FEW_SHOT, FEW_SHOT_SCRATCH, finetune_accuracy
from mae.evaluation.knn import knn_accuracy
from mae.evaluation.logistic import logistic_accuracy
from mae.evaluation.split import labels_per_class
from mae.model.create import create
from mae.model.encoder import Encoder
from mae.weights.load import load_classifier, load_encoder

STEPS = {10: 150, 50: 300, 250: 600}
"""Steps of 50 images by labels a class: the same for every way of starting."""
FEWEST = (10, 50)
"""Labels a class where many networks are compared, which 250 would take an hour longer for."""
BLOCKS = (0.5, 1.0, 2.0, None)
"""How many of the last blocks are tuned; None: everything."""

Cell = dict[str, Any]
Features = Callable[[Iterable[Tensor]], Array]


def few_labels(folder: Path, *, seed: int, per_class: int) -> Cell:
    """Measure all ways with few labels of all ten classes, which the seed draws."""
    encoder = load_encoder(pretrain_whole(folder, seed))
    train, test = (LabelledImages.of(fashion_mnist(part)) for part in ("train", "test"))  # type: ignore[arg-type]
    few = _draw(train, per_class, seed=seed)
    new = create(encoder.config, seed=seed).encoder
    parts = {"train": few, "test": test}
    return {
        "MAE": {
            "fine-tuned": _finetuned(encoder, FEW_SHOT, per_class, seed=seed, **parts),
            **_read(partial(_pooled, encoder, "grid"), **parts),
        },
        "untrained": {
            "fine-tuned": _finetuned(new, FEW_SHOT_SCRATCH, per_class, seed=seed, **parts),
            **_read(partial(_pooled, new, "grid"), **parts),
        },
        "raw pixels": _read(pixel_features, **parts),
    }


def transfer(folder: Path, *, half: int, seed: int, per_class: int) -> Cell:
    """Measure, with few labels of five classes, what was learnt from the other five."""
    other = HALVES[1 - half]
    train, test = (LabelledImages.of(half_source(part, other)) for part in ("train", "test"))  # type: ignore[arg-type]
    few = _draw(train, per_class, seed=seed)
    parts = {"train": few, "test": test}
    mae = load_encoder(pretrain_half(folder, half, seed))
    classifier = load_classifier(supervise_half(folder, half, seed)).model.eval()
    supervised = classifier.encoder
    new = create(mae.config.run, seed=seed).encoder

    def judged(batches: Iterable[Tensor]) -> Array:
        """Give what the supervised network's own head is given."""
        with torch.inference_mode():
            rows = [
                classifier.fc_norm(supervised(supervised.normalize(b))[:, 1:].mean(dim=1))
                for b in batches
            ]
        return torch.cat(rows).numpy()

    def start(encoder: Encoder, config: FinetuneConfig) -> float:
        config = replace(config, num_classes=len(other))
        return _finetuned(encoder, config, per_class, seed=seed, **parts)

    return {
        "MAE": {
            "fine-tuned": start(mae, FEW_SHOT),
            "mean": _read(partial(_pooled, mae, "mean"), **parts),
            "grid": _read(partial(_pooled, mae, "grid"), **parts),
        },
        "supervised": {
            "fine-tuned": start(supervised, FEW_SHOT),
            "mean": _read(judged, **parts),
            "grid": _read(partial(_pooled, supervised, "grid"), **parts),
        },
        "untrained": {
            "fine-tuned": start(new, FEW_SHOT_SCRATCH),
            "mean": _read(partial(_pooled, new, "mean"), **parts),
            "grid": _read(partial(_pooled, new, "grid"), **parts),
        },
        "raw pixels": _read(pixel_features, **parts),
    }


def partial_tuning(folder: Path, *, seed: int, per_class: int) -> Cell:
    """Tune the last blocks alone; 0 is logistic regression on the mean of the patch tokens."""
    encoder = load_encoder(pretrain_whole(folder, seed))
    train, test = (LabelledImages.of(fashion_mnist(part)) for part in ("train", "test"))  # type: ignore[arg-type]
    parts = {"train": _draw(train, per_class, seed=seed), "test": test}
    tuned = {
        str(blocks or encoder.config.depth): _finetuned(
            encoder, replace(FEW_SHOT, train_blocks=blocks), per_class, seed=seed, **parts
        )
        for blocks in BLOCKS
    }
    return {"0": _read(partial(_pooled, encoder, "mean"), **parts)["logistic"]} | tuned


def _draw(images: LabelledImages, per_class: int, *, seed: int) -> LabelledImages:
    ids = labels_per_class(images.labels, per_class, seed=0, draw=seed)
    return images.only(ids)


def _finetuned(
    encoder: Encoder,
    config: FinetuneConfig,
    per_class: int,
    *,
    seed: int,
    train: LabelledImages,
    test: LabelledImages,
) -> float:
    config = replace(config, steps=STEPS[per_class], seed=seed)
    return finetune_accuracy(encoder, train=train, test=test, config=config)


def _pooled(encoder: Encoder, pool: Any, batches: Iterable[Tensor]) -> Array:
    return encoder_features(encoder, batches, pools=[pool])[pool]


def _read(features: Features, *, train: LabelledImages, test: LabelledImages) -> Cell:
    """Classify by neighbours and by logistic regression on standardised features."""
    known, asked = standardized(features(train.batches()), features(test.batches()))
    rows = known, train.labels, asked, test.labels
    return {"k-NN": knn_accuracy(*rows), "logistic": logistic_accuracy(*rows)}
