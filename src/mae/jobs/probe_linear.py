"""Linear probing with the paper's protocol: train a linear head on the frozen encoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Unpack

import numpy as np
import torch
from torch import nn

from mae.config.run import FinetuneConfig
from mae.data.batching.batch import Batch, BatchPlan
from mae.data.decoding.header import kind_of
from mae.data.sources.subset import subset
from mae.errors import ConfigError
from mae.evaluation.classify import TOP
from mae.evaluation.evidence import score
from mae.evaluation.features import encoder_features
from mae.evaluation.few_labels import ALL, FewLabels
from mae.evaluation.inputs import FeatureSettings, map_images, open_for_features
from mae.evaluation.labelled_data import labelled
from mae.evaluation.linear_probe import PROTOCOL, max_update, train_head
from mae.evaluation.metrics import predictions_from_scores
from mae.model.encoder import Encoder
from mae.progress import Progress
from mae.runs.state import TrainState
from mae.train.fit import EveryNSteps
from mae.train.measure import count_steps
from mae.train.resolve import batch_plan, choose_workers
from mae.train.step import Metrics
from mae.weights.given import Given

TEST_BATCH = 64  # images encoded at a time


class PaperProbe(NamedTuple):
    """Accuracy of the linear heads on the test images, mean and std over all runs."""

    top1: float
    top5: float | None
    """None where there are no more than five classes."""
    loss: float
    classes: int
    train: int
    test: int
    epochs: float
    batch: int
    base_lr: float
    peak_lr: float
    steps: int
    """Steps of each run."""
    seeds: tuple[int, ...]
    """One per run, for initial weights, order and crops; all runs use the labels of one seed."""
    labels: str | None
    top1_spread: float
    top5_spread: float


def paper_config(
    *, epochs: float | None, batch: int | None, lr: float | None, seed: int, device: str
) -> FinetuneConfig:
    """Return the protocol with some values changed; warm-up keeps its fraction of the epochs.

    Raises:
        ConfigError: for an invalid value.
    """
    if batch is not None and batch < 2:
        raise ConfigError(f"batch: expected at least 2, for the batch norm, got {batch}")
    base, epochs = PROTOCOL.optim, PROTOCOL.epochs if epochs is None else epochs
    warmup = max(0.0, base.warmup_epochs * epochs / PROTOCOL.epochs)
    optim = replace(base, lr=base.lr if lr is None else lr, warmup_epochs=warmup)
    batch = PROTOCOL.batch if batch is None else batch
    return replace(PROTOCOL, epochs=epochs, batch=batch, optim=optim, seed=seed, device=device)


def paper_probe(
    weights: str | Path,
    data: str | Path,
    *,
    config: FinetuneConfig = PROTOCOL,
    few: FewLabels = ALL,
    crop_pct: float | None = None,
    quiet: bool = False,
    **given: Unpack[Given],
) -> PaperProbe:
    """Train a linear head on crops as the paper does; test it on the evaluation view.

    Args:
        weights: whatever `load_encoder` takes.
        data: see `labelled`.
        config: length, batch, rates, device, and the seed of everything.
        few: how many labels to train on; each run has its own seed, even with all labels.
        crop_pct: fraction of a test image that is kept, see `ModelConfig`; none: as in the weights.
        quiet: show no progress.
        given: what the weights do not say, see `Given`.

    Raises:
        MaeError: for whatever the user must change, in one line.
    """
    with Progress(quiet=quiet) as progress:
        train, test, _, notes = labelled(data, seed=config.seed, weights=weights)
        for note in notes:
            progress.note(note)
        draws = few.draws(*train, seed=config.seed, log=progress.note)
        settings = FeatureSettings("cls", TEST_BATCH, config.device, crop_pct, given)
        encoder = open_for_features(weights, settings, log=progress.note)
        ids, labels, tokens = map_images(
            lambda got: (
                got.ids,
                got.labels,
                encoder_features(encoder, [got.images], pools=["cls"])["cls"],
            ),
            encoder,
            *test,
            batch=TEST_BATCH,
            progress=progress,
            label="test image",
        )
        runs: list[tuple[FinetuneConfig, BatchPlan, int]] = []
        for run, chosen in enumerate(draws):
            batch, seed = min(config.batch, len(chosen)), config.seed + run
            own = replace(config, model=encoder.config, batch=batch, seed=seed)
            plan = batch_plan(own, subset(train.source, chosen), kind_of(encoder.config))
            runs.append((own, plan, count_steps(own, plan, encoder)))
        first, _, steps = runs[0]
        if first.batch < config.batch:
            progress.note(f"batch: lowered from {config.batch:,} to {first.batch:,}, all images")
        if (change := max_update(first, num_steps=steps)) < 1:
            progress.note(
                f"lr: {first.optim.lr:g} changes the weights by at most {change:.2g} of their norm "
                f"in {steps:,} steps of {first.batch:,}, and about nothing is learned; give "
                f"--lr {first.optim.lr * 5 / change:.2g} or more, or a smaller --batch"
            )
        found = []
        for own, plan, num_steps in runs:
            head = _train(encoder, own, plan, num_steps, progress)
            with torch.inference_mode():
                scores = head(torch.from_numpy(tokens).to(encoder.cls_token.device))
            found.append(predictions_from_scores(scores, labels=labels, ids=ids))
    top1, top5 = (score([each.top(k) for each in found]) for k in (1, TOP))
    classes = len(train.source.class_names)
    return PaperProbe(
        top1=top1.mean,
        top5=top5.mean if classes > TOP else None,
        loss=float(np.mean([each.loss for each in found])),
        classes=classes,
        train=len(draws[0]),
        test=len(ids),
        epochs=config.epochs,
        batch=first.batch,
        base_lr=config.optim.lr,
        peak_lr=config.optim.peak_lr(first.batch),
        steps=steps,
        seeds=tuple(own.seed for own, _, _ in runs),
        labels=few.labels,
        top1_spread=top1.spread,
        top5_spread=top5.spread,
    )


def _train(
    encoder: Encoder, config: FinetuneConfig, plan: BatchPlan, num_steps: int, progress: Progress
) -> nn.Sequential:
    """Train the head of a run, naming each unreadable image once."""
    named: set[str] = set()

    def show(state: TrainState, metrics: Metrics) -> None:
        progress.update(state.step, loss=metrics.loss, lr=metrics.lr)

    def name_unreadable(batch: Batch, metrics: Metrics) -> None:
        for bad in batch.bad:
            if bad.name not in named:
                named.add(bad.name)
                progress.note(f"unreadable: {bad.name}: {bad.reason}; another image replaces it")

    workers = choose_workers(config, plan, encoder.cls_token.device, log=progress.note)
    progress.note(f"seed {config.seed}: {num_steps:,} steps of {config.batch:,}")
    progress.start(num_steps, images_per_step=config.batch)
    return train_head(
        encoder,
        plan,
        config=config,
        num_steps=num_steps,
        workers=workers,
        callbacks=[EveryNSteps(1, show)],
        on_step_end=name_unreadable,
    )
