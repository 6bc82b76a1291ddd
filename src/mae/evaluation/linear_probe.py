"""Linear probe of the paper: batch norm and linear layer on the frozen cls token, with LARS.

Source: He et al. 2021, Table 10 and Appendix A.1.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae.config.run import AugmentConfig, FinetuneConfig, OptimConfig
from mae.data.batching.batch import Batch, BatchPlan
from mae.data.batching.loader import batches, on_device
from mae.errors import ConfigError
from mae.model.encoder import Encoder
from mae.parallel.processes import SINGLE_PROCESS, Communicator
from mae.progress import Progress
from mae.runs.state import TrainState
from mae.train.fit import EveryNSteps, fit
from mae.train.optim.lars import TRUST
from mae.train.optim.parameter_groups import create_optimizer
from mae.train.schedule import rate_at
from mae.train.step import Metrics, OptimiserStep
from mae.train.workers import choose_workers

PROTOCOL = FinetuneConfig(
    epochs=90,
    batch=16384,
    pool="cls",
    optim=OptimConfig(name="lars", lr=0.1, warmup_epochs=10, weight_decay=0.0),
    augment=AugmentConfig(crop_scale=(0.08, 1.0), crop_clip=True, flip=0.5),
)
"""Momentum 0.9 is the default of `betas`, the trust coefficient of 0.001 that of `Lars`. The crops
are those of the published code (main_linprobe.py, util/crop.py): one draw, clipped."""
NORM_EPS = 1e-6
ENCODED = 256  # images encoded at a time, whatever the batch


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


def linear_head(width: int, *, num_classes: int, seed: int) -> nn.Sequential:
    """Create the head: D features to K scores."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        head = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    # The norm has no trainable weights: it only standardises the features.
    return nn.Sequential(nn.BatchNorm1d(width, affine=False, eps=NORM_EPS), head)


@torch.no_grad()
def cls_features(encoder: Encoder, images: Tensor) -> Tensor:
    """Return the cls token after the encoder's norm: B C H W (stored type) to B D float32."""
    parts = (encoder(encoder.normalize(part))[:, 0] for part in torch.split(images, ENCODED))
    return torch.cat([part.float() for part in parts])


def encoded_batch(encoder: Encoder, batch: Batch, *, ranks: Communicator) -> Batch:
    """Return the whole batch, of which each process has a share, with its features as the images.

    Args:
        encoder: on the device of the batch.
        batch: consecutive images of the whole batch, in the order of the processes.
        ranks: the processes.
    """
    features = cls_features(encoder, batch.images)
    if ranks.process.world_size == 1:
        return batch._replace(images=features)
    device = features.device
    shares = ranks.all_gather((features.cpu(), batch.labels.cpu(), batch.ids, batch.bad))
    images, labels, ids, bad = zip(*shares, strict=True)
    return Batch(
        torch.cat(images).to(device),
        batch.noise,
        torch.cat(ids),
        torch.cat(labels).to(device),
        tuple(sum(bad, ())),
    )


def train_head(
    encoder: Encoder,
    plan: BatchPlan,
    *,
    config: FinetuneConfig,
    num_steps: int,
    progress: Progress,
    ranks: Communicator = SINGLE_PROCESS,
) -> nn.Sequential:
    """Train a head on the cls tokens of crops, with the encoder frozen.

    Only the head is passed to the optimiser. Its batch norm uses the statistics of whole batches;
    the published code uses those of each GPU's part. Several processes divide the images of each
    batch, gather their features, and train the same head each.

    Args:
        encoder: on the device to train on; not changed.
        plan: defines the labelled batches, and the share of this process.
        config: batch, learning rates and seed.
        num_steps: optimiser steps.
        progress: shows the steps, and names each unreadable image once.
        ranks: the processes.

    Returns:
        The head, in evaluation mode, the same in every process.
    """

    named: set[str] = set()

    def loss(head: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(head(batch.images), batch.labels)

    def show(state: TrainState, metrics: Metrics) -> None:
        progress.update(state.step, loss=metrics.loss, lr=metrics.lr)

    def name_unreadable(batch: Batch, metrics: Metrics) -> None:
        for bad in batch.bad:
            if bad.name not in named:
                named.add(bad.name)
                progress.note(f"unreadable: {bad.name}: {bad.reason}; another image replaces it")

    was_training, device = encoder.training, encoder.cls_token.device
    encoder.eval()
    classes = len(plan.source.class_names)
    head = linear_head(encoder.config.width, num_classes=classes, seed=config.seed).to(device)
    workers = choose_workers(config, plan, device, log=progress.note, process=ranks.process)
    progress.note(f"seed {config.seed}: {num_steps:,} steps of {config.batch:,}")
    progress.start(num_steps, images_per_step=config.batch)
    own = batches(plan, start=0, stop=num_steps, workers=workers, log=progress.note)
    fit(
        TrainState(head.train(), create_optimizer(head, config.optim)),
        (encoded_batch(encoder, batch, ranks=ranks) for batch in on_device(own, device)),
        OptimiserStep(loss=loss, config=config, device=device),
        num_steps=num_steps,
        rate=partial(rate_at, num_steps=num_steps, config=config, batch=config.batch),
        callbacks=[EveryNSteps(1, show)],
        on_step_end=name_unreadable,
    )
    encoder.train(was_training)
    return head.eval()


def max_update(config: FinetuneConfig, *, num_steps: int) -> float:
    """Return the largest total change of the weights by LARS, as a multiple of their norm.

    Each step changes them by 0.001 times the learning rate, and momentum multiplies this by ten.
    At the paper's batch and length the total is 200 times their norm; with little data, and so
    few steps at the low learning rate of a small batch, they stay near their initial values.
    """
    rate = partial(rate_at, num_steps=num_steps, config=config, batch=config.batch)
    return TRUST / (1 - config.optim.betas[0]) * sum(map(rate, range(num_steps)))
