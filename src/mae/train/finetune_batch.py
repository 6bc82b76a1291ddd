"""Fine-tuning batches (normalize, random erasing, Mixup/CutMix) and their soft-target loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae.config.run import FinetuneConfig
from mae.data.augment.mixup import mixed_images, mixing, soft_targets
from mae.data.augment.random_erasing import erased
from mae.data.batching.batch import Batch, BatchPlan
from mae.model.normalize import normalize_pixels


def finetune_batch(
    batch: Batch, plan: BatchPlan, config: FinetuneConfig, *, step: int, device: torch.device
) -> Batch:
    """Normalise, erase and mix the batch of a step, on the device.

    The batch is mixed before it is split into micro-batches, so that images mix with partners
    from the whole batch. A mirrored share of a batch holds these partners, in reverse.

    Args:
        batch: stored pixels and labels, of the whole batch or of this rank's share.
        plan: the plan of the batch.
        config: configuration of the run.
        step: number of the step.
        device: device of the model.

    Returns:
        The batch with normalised images and soft targets.
    """
    ids, (epoch, _) = batch.ids.numpy(), plan.batch_ids(step)
    batch = batch.to(device)
    images = normalize_pixels(batch.images, config.model.pixels)
    if config.erase:
        images = erased(images, ids, seed=config.seed, epoch=epoch, rate=config.erase)
    how = mixing(config.mix, seed=config.seed, step=step, size=plan.size)
    targets = soft_targets(
        batch.labels, how, num_classes=config.num_classes, smoothing=config.mix.smoothing
    )
    return batch._replace(images=mixed_images(images, how), targets=targets)


def soft_target_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the cross-entropy with the soft targets of a batch from `finetune_batch`."""
    scores = model(batch.images, drops=batch.drops)
    assert batch.targets is not None
    return F.cross_entropy(scores.float(), batch.targets)
