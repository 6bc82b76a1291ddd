"""Few-shot fine-tuning of a pre-trained encoder, compared with training from scratch."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from mae.config.run import AugmentConfig, FinetuneConfig, OptimConfig
from mae.data.batching.loader import batches
from mae.data.decoding.header import kind_of
from mae.data.sources.source import ArraySource
from mae.evaluation.evidence import score
from mae.evaluation.features import LabelledImages, pixel_features, standardized
from mae.evaluation.logistic import logistic_accuracy
from mae.evaluation.split import Labels, labels_per_class
from mae.model.classifier import Classifier
from mae.model.create import create
from mae.model.encoder import Encoder
from mae.train.ema import apply_ema
from mae.train.finetune_batch import finetune_batch, soft_target_loss
from mae.train.fit import fit
from mae.train.measure import count_steps
from mae.train.resolve import batch_plan, new_state
from mae.train.schedule import fixed_rate_at, rate_at
from mae.train.step import OptimiserStep

FEW_SHOT = FinetuneConfig(
    num_classes=10,
    steps=150,
    batch=50,
    optim=OptimConfig(lr=0.02, betas=(0.9, 0.999), decay_tokens=False),
    layer_decay=0.5,
    augment=AugmentConfig(crop_scale=(1.0, 1.0), flip=0.5),
)
"""For a pre-trained encoder: the best settings on a validation part (docs/log.md)."""
FEW_SHOT_SCRATCH = replace(FEW_SHOT, optim=replace(FEW_SHOT.optim, lr=0.01), layer_decay=0.65)
"""For a new network, with the same steps and batch: chosen in the same way."""
PER_CLASS = 10
SEEDS = (0, 1, 2)


def few_label_finetuning(
    pretrained: Encoder,
    *,
    train: LabelledImages,
    test: LabelledImages,
    config: FinetuneConfig = FEW_SHOT,
    scratch: FinetuneConfig = FEW_SHOT_SCRATCH,
) -> dict[str, Any]:
    """Fine-tune on 10 labels per class with three seeds, beside two baselines.

    The baselines are the same network from scratch and logistic regression on raw pixels. Each
    seed determines the labels, the initial weights of head and new network, order and flips.

    Args:
        pretrained: the pre-trained encoder; not changed.
        train: labelled images to draw from.
        test: images to classify.
        config: settings for the pre-trained encoder.
        scratch: settings for the same network from new weights.

    Returns:
        Contents of results.json: mean and std of the accuracy of `pretrained`; of `scratch`, the
        same network from its initial weights for as many steps of the same batch; and of `pixels`.

    Raises:
        DataError: if a class has too few labels.
    """
    train_x, test_x = standardized(pixel_features(train.batches()), pixel_features(test.batches()))
    found = []
    for seed in SEEDS:
        ids = labels_per_class(train.labels, PER_CLASS, seed=0, draw=seed)
        few = train.only(ids)
        new = create(pretrained.config, seed=seed).encoder.to(pretrained.cls_token.device)
        accuracies = [
            finetune_accuracy(encoder, train=few, test=test, config=replace(how, seed=seed))
            for encoder, how in ((pretrained, config), (new, scratch))
        ]
        pixels = logistic_accuracy(train_x[ids], few.labels, test_x, test.labels)
        found.append((*accuracies, pixels))
    about = (
        f"accuracy on {len(test.labels):,} test images after training on {PER_CLASS} labels a "
        f"class; mean ± std of {len(SEEDS)} seeds"
    )
    names = ("pretrained", "scratch", "pixels")
    scores = [score(each)._asdict() for each in zip(*found, strict=True)]
    return {"about": about} | dict(zip(names, scores, strict=True))


def finetune_accuracy(
    encoder: Encoder, *, train: LabelledImages, test: LabelledImages, config: FinetuneConfig
) -> float:
    """Train a classifier with `finetune_in_memory` and return its test accuracy, 0 to 1."""
    model = finetune_in_memory(encoder, train=train, config=config)
    return float((predicted_classes(model, test) == test.labels).mean())


@torch.inference_mode()
def predicted_classes(model: Classifier, test: LabelledImages) -> Labels:
    """Return the predicted class of each image."""
    device = model.head.weight.device
    batches = (model.encoder.normalize(part.to(device)) for part in test.batches())
    predicted: Labels = torch.cat([model(batch).cpu() for batch in batches]).argmax(dim=1).numpy()
    return predicted


def finetune_in_memory(
    encoder: Encoder, *, train: LabelledImages, config: FinetuneConfig
) -> Classifier:
    """Train a classifier on a copy of the encoder, without a run directory.

    Args:
        encoder: not changed; the copy is trained on its device.
        train: labelled images, whole, flipped or cropped as configured.
        config: settings, of which the network and the device are replaced by the encoder's;
            length in steps, or in epochs of whole batches.

    Returns:
        The classifier, in evaluation mode.
    """
    device, batch = encoder.cls_token.device, min(config.batch, len(train.images))
    settled = {"model": encoder.config, "follow_weights": False, "device": str(device)}
    config = replace(config, **settled, batch=batch)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        model = Classifier(
            copy.deepcopy(encoder),
            num_classes=config.num_classes,
            pool=config.pool,
            drop_path=config.drop_path,
        )
    images = train.images.permute(0, 2, 3, 1).contiguous().numpy()  # n H W C
    source = ArraySource(images, labels=train.labels)
    plan = batch_plan(config, source, kind_of(config.model))
    num_steps = count_steps(config, plan, model)
    state = new_state(model, config)
    made = batches(plan, start=0, stop=num_steps, workers=0)
    fit(
        state,
        (finetune_batch(b, plan, config, step=i, device=device) for i, b in enumerate(made)),
        OptimiserStep(loss=soft_target_loss, config=config, device=device),
        num_steps=num_steps,
        rate=partial(rate_at, num_steps=num_steps, config=config, batch=plan.batch),
        fixed_rate=partial(fixed_rate_at, num_steps=num_steps, config=config),
    )
    apply_ema(state.optimizer)
    return model.eval()
