"""Linear probing with the paper's protocol: train a linear head on the frozen encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from mae.config.run import FitConfig
from mae.data.batching.batch import Batch, BatchPlan
from mae.data.sources.source import Source
from mae.data.sources.subset import subset
from mae.errors import ConfigError
from mae.evaluation.divided import tuned_on
from mae.evaluation.evidence import score
from mae.evaluation.features import Array, Labels, encoder_features
from mae.evaluation.few_labels import Ids
from mae.evaluation.few_options import ALL, FewSettings, counted, percent
from mae.evaluation.inputs import FeatureSettings, labelled_in_batches, open_for_features
from mae.evaluation.labelled_data import Part, labelled
from mae.evaluation.linear_probe import CROPS, PROTOCOL, batch_plan, count_steps, reach, train_head
from mae.evaluation.metrics import Verdicts, verdicts
from mae.model.encoder import Encoder
from mae.progress import Progress
from mae.runs.state import TrainState
from mae.train.fit import EveryNSteps
from mae.train.resolve import choose_workers
from mae.train.step import Metrics
from mae.weights.given import Given

TOP = 5
LEAST_REACH = 1.0
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

    def rows(self) -> list[tuple[str, str, str]]:
        """Return the rows of a table."""
        runs = len(self.seeds)
        counts = counted(self.train, self.test, labels=self.labels, runs=runs)
        made = (
            f"{self.steps:,} steps of {self.batch:,} in {self.epochs:g} epochs, LARS, rate "
            f"{self.base_lr:g} per 256, {self.peak_lr:.3g} at its peak"
        )
        top5 = [] if self.top5 is None else [("top-5", self.top5, self.top5_spread)]
        found = [("top-1", self.top1, self.top1_spread), *top5]
        return [
            ("linear, paper", f"{self.classes} classes", counts),
            ("protocol", "cls token", made),
            *((name, percent(mean, spread, runs=runs), "") for name, mean, spread in found),
            ("loss", f"{self.loss:.4f}", f"seeds {', '.join(map(str, self.seeds))}"),
        ]


def paper_config(
    *, epochs: float | None, batch: int | None, lr: float | None, seed: int, device: str
) -> FitConfig:
    """Return the protocol with some values changed; warm-up keeps its fraction of the epochs.

    Raises:
        ConfigError: for an invalid value.
    """
    optim = PROTOCOL.optim
    given = PROTOCOL.epochs if epochs is None else epochs
    warmup = max(0.0, optim.warmup_epochs * given / PROTOCOL.epochs)
    if batch is not None and batch < 2:
        raise ConfigError(f"batch: expected at least 2, of which to take a mean, got {batch}")
    return replace(
        PROTOCOL,
        epochs=given,
        batch=PROTOCOL.batch if batch is None else batch,
        optim=replace(optim, lr=optim.lr if lr is None else lr, warmup_epochs=warmup),
        seed=seed,
        device=device,
    )


def paper_probe(
    weights: str | Path,
    data: str | Path,
    *,
    config: FitConfig = PROTOCOL,
    few: FewSettings = ALL,
    crop_pct: float | None = None,
    given: Given | None = None,
    quiet: bool = False,
) -> PaperProbe:
    """Train a linear head on crops as the paper does; test it on the evaluation view.

    Args:
        weights: whatever `load_encoder` takes.
        data: see `labelled`.
        config: length, batch, rates, device, and the seed of everything.
        crop_pct: fraction of a test image that is kept, see `ModelConfig`; none: as in the weights.
        few: how many labels to train on; each run has its own seed, even with all labels.
        given: what the weights do not say.
        quiet: show no progress.

    Raises:
        MaeError: for whatever the user must change, in one line.
    """
    with Progress(quiet=quiet) as progress:
        train, test, _, notes = labelled(data, seed=config.seed, tuned=tuned_on(weights))
        for note in notes:
            progress.note(note)
        draws = few.draws(*train, seed=config.seed, say=progress.note)
        settings = FeatureSettings("cls", TEST_BATCH, config.device, crop_pct, given)
        encoder = open_for_features(weights, settings, say=progress.note)
        asked = _cls_tokens(encoder, test, progress)
        sources = [subset(train.source, ids) for ids in draws]
        plans = [_plan(encoder, source, config, run=i) for i, source in enumerate(sources)]
        _tell(plans[0], config, say=progress.note)
        found = [_judged(_train(encoder, plan, config, progress), asked) for plan in plans]
    return _summed_up(found, plans, config=config, labels=few.labels)


class _Asked(NamedTuple):
    tokens: Array
    """Shape (n, D)."""
    labels: Labels
    ids: Ids


def _cls_tokens(encoder: Encoder, part: Part, progress: Progress) -> _Asked:
    """Encode the test images once for all runs."""
    look = partial(labelled_in_batches, batch=TEST_BATCH, progress=progress, label="test picture")
    pieces = [
        (encoder_features(encoder, [got.images], pools=["cls"])["cls"], got.labels, got.ids)
        for got in look(encoder, *part)
    ]
    return _Asked(*map(np.concatenate, zip(*pieces, strict=True)))


def _plan(encoder: Encoder, source: Source, config: FitConfig, *, run: int) -> BatchPlan:
    batch, seed = min(config.batch, len(source)), config.seed + run
    settled = replace(config, batch=batch, seed=seed)
    return batch_plan(encoder, source, config=settled, augment=CROPS)


def _tell(plan: BatchPlan, config: FitConfig, *, say: Callable[[str], None]) -> None:
    """Report a lowered batch size, and a learning rate too low to train with."""
    if plan.batch < config.batch:
        say(f"batch: lowered from {config.batch:,} to {plan.batch:,}, the pictures there are")
    if (far := reach(plan, config)) < LEAST_REACH:
        say(
            f"lr: {config.optim.lr:g} moves the weights by at most {far:.2g} of their norm in "
            f"{count_steps(plan, config):,} steps of {plan.batch:,}, and about nothing is learnt; "
            f"give --lr {config.optim.lr * 5 * LEAST_REACH / far:.2g} or more, or a smaller --batch"
        )


def _train(
    encoder: Encoder, plan: BatchPlan, config: FitConfig, progress: Progress
) -> nn.Sequential:
    """Train the head of a run, naming each unreadable image once."""
    named: set[str] = set()

    def show(state: TrainState, metrics: Metrics) -> None:
        progress.update(state.step, loss=metrics.loss, lr=metrics.lr)

    def seen(batch: Batch, metrics: Metrics) -> None:
        for bad in batch.bad:
            if bad.name not in named:
                named.add(bad.name)
                progress.note(f"unreadable: {bad.name}: {bad.reason}; another stands in for it")

    settled = replace(config, seed=plan.seed)
    workers = choose_workers(settled, plan, encoder.cls_token.device, log=progress.note)
    progress.note(f"seed {plan.seed}: {count_steps(plan, settled):,} steps of {plan.batch:,}")
    progress.start(count_steps(plan, settled), images_per_step=plan.batch)
    return train_head(
        encoder,
        plan,
        config=settled,
        workers=workers,
        callbacks=[EveryNSteps(1, show)],
        on_step_end=seen,
    )


@torch.inference_mode()
def _judged(head: nn.Sequential, asked: _Asked) -> Verdicts:
    device = next(head.parameters()).device
    scores = head(torch.from_numpy(asked.tokens).to(device))
    return verdicts(scores, labels=asked.labels, ids=asked.ids)


def _summed_up(
    found: Sequence[Verdicts], plans: Sequence[BatchPlan], *, config: FitConfig, labels: str | None
) -> PaperProbe:
    plan = plans[0]
    top1, top5 = (score([each.top(k) for each in found]) for k in (1, TOP))
    classes = len(plan.source.class_names)
    return PaperProbe(
        top1=top1.mean,
        top5=top5.mean if classes > TOP else None,
        loss=float(np.mean([each.loss for each in found])),
        classes=classes,
        train=len(plan.source),
        test=len(found[0]),
        epochs=config.epochs,
        batch=plan.batch,
        base_lr=config.optim.lr,
        peak_lr=config.optim.peak_lr(plan.batch),
        steps=count_steps(plan, config),
        seeds=tuple(plan.seed for plan in plans),
        labels=labels,
        top1_spread=top1.spread,
        top5_spread=top5.spread,
    )
