"""Fine-tuning on a few labels, in its simplest form, by the same loop as pre-training."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae.config import AugmentConfig, FinetuneConfig, OptimConfig
from mae.data.batch import Batch, BatchPlan
from mae.data.decode import PixelKind
from mae.data.loader import batches
from mae.data.source import ArraySource
from mae.evaluate.features import Pictures, pixel_features, standardized
from mae.evaluate.linear import logistic_accuracy
from mae.evaluate.split import labels_per_class
from mae.evaluate.table import Score, score
from mae.model.classifier import Classifier
from mae.model.create import create
from mae.model.encoder import Encoder
from mae.train.fit import fit
from mae.train.optim import adamw
from mae.train.schedule import rate_at
from mae.train.state import TrainState
from mae.train.step import OptimiserStep

FEW_SHOT = FinetuneConfig(
    num_classes=10,
    steps=150,
    batch=50,
    optim=OptimConfig(lr=0.01, betas=(0.9, 0.999)),
    augment=AugmentConfig(crop_scale=(1.0, 1.0), flip=0.5),
)
"""For the pre-trained and the new network alike; the rate is the best for the new one of those
tried (docs/log.md), and as good as any for the pre-trained one."""
PER_CLASS = 10
SEEDS = (0, 1, 2)


class FewShot(NamedTuple):
    """Accuracies on few labels, over the same draws of labels."""

    pretrained: Score
    scratch: Score
    """The same network from its initial weights, trained in the same way."""
    pixels: Score
    """Logistic regression on raw pixels."""
    about: str

    def to_dict(self) -> dict[str, object]:
        """Give what results.json holds."""
        names = ("pretrained", "scratch", "pixels")
        return {"about": self.about} | {name: getattr(self, name)._asdict() for name in names}


def few_label_finetuning(
    pretrained: Encoder, *, train: Pictures, test: Pictures, config: FinetuneConfig = FEW_SHOT
) -> FewShot:
    """Fine-tune on 10 labels a class, three times, beside two ways without pre-training.

    Each seed draws the labels, the initial weights of head and new network, order and flips.

    Raises:
        DataError: if a class has too few labels.
    """
    train_x, test_x = standardized(pixel_features(train.batches()), pixel_features(test.batches()))
    found = []
    for seed in SEEDS:
        ids = labels_per_class(train.labels, PER_CLASS, seed=0, draw=seed)
        few = Pictures(train.images[torch.from_numpy(ids)], train.labels[ids])
        new = create(pretrained.config, seed=seed).encoder.to(pretrained.cls_token.device)
        run = replace(config, seed=seed)
        tuned = [finetune_accuracy(e, train=few, test=test, config=run) for e in (pretrained, new)]
        pixels = logistic_accuracy(train_x[ids], few.labels, test_x, test.labels)
        found.append((*tuned, pixels))
    about = (
        f"accuracy on {len(test.labels):,} test pictures after training on {PER_CLASS} labels a "
        f"class; mean ± deviation of {len(SEEDS)} seeds"
    )
    tuned_score, scratch, pixels_score = map(score, zip(*found, strict=True))
    return FewShot(tuned_score, scratch, pixels_score, about)


def finetune_accuracy(
    encoder: Encoder, *, train: Pictures, test: Pictures, config: FinetuneConfig
) -> float:
    """Train a classifier on a copy of the encoder; give the share of the test that it gets right.

    Args:
        encoder: left as it was; trained on the device where it is.
        train: labelled pictures, taken whole, flipped or cropped as configured.
        test: pictures to classify.
        config: length as steps, or epochs of whole batches.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        model = Classifier(copy.deepcopy(encoder), num_classes=config.num_classes)
    device = encoder.cls_token.device
    model.to(device).train()
    images = train.images.permute(0, 2, 3, 1).contiguous().numpy()  # n H W C
    plan = BatchPlan(
        source=ArraySource(images, labels=train.labels),
        kind=PixelKind(encoder.config.pixels.dtype, encoder.config.channels),
        size=encoder.config.image_size,
        num_patches=encoder.config.num_patches,
        augment=config.augment,
        batch=min(config.batch, len(images)),
        seed=config.seed,
    )
    num_steps = config.steps or max(1, round(config.epochs * plan.batches_per_epoch))
    fit(
        TrainState(model, adamw(model, config.optim)),
        batches(plan, start=0, stop=num_steps, workers=0),
        OptimiserStep(loss=classification_loss, config=config, device=device),
        num_steps=num_steps,
        rate=lambda step: rate_at(step, num_steps=num_steps, config=config, batch=plan.batch),
    )
    model.eval()
    with torch.inference_mode():
        scores = [model(encoder.normalize(part.to(device))).cpu() for part in test.batches()]
    return float((torch.cat(scores).argmax(dim=1).numpy() == test.labels).mean())


def classification_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Give the cross-entropy of a batch of stored pixels and labels."""
    images = model.encoder.normalize(batch.images)  # type: ignore[operator, union-attr]
    return F.cross_entropy(model(images), batch.labels)
