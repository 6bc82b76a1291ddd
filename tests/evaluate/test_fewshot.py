import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mae.config import ModelConfig
from mae.evaluate import fewshot
from mae.evaluate.features import Pictures
from mae.evaluate.fewshot import (
    FEW_SHOT,
    classification_loss,
    few_label_finetuning,
    finetune_accuracy,
)
from mae.model.create import create

CONFIG = ModelConfig(
    image_size=(12, 20), patch_size=4, channels=3, width=24, depth=1, num_heads=3,
    decoder_width=16, decoder_depth=1, decoder_heads=2,
)  # fmt: skip
RUN = replace(FEW_SHOT, num_classes=3, steps=30, batch=9)


def pictures(rng, n):
    labels = np.arange(n) % 3
    images = rng.integers(0, 100, (n, 3, 12, 20)) + 70 * labels[:, None, None, None]
    return Pictures(torch.from_numpy(images.astype(np.uint8)), labels)


def test_fine_tuning_learns_what_is_easy_and_leaves_the_encoder_as_it_was(rng):
    encoder = create(CONFIG).encoder
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    train, test = pictures(rng, 30), pictures(rng, 12)

    accuracy = finetune_accuracy(encoder, train=train, test=test, config=RUN)

    assert accuracy == 1
    assert all(torch.equal(before[name], v) for name, v in encoder.state_dict().items())


def test_fine_tuning_is_a_function_of_its_seed_alone(rng, monkeypatch):
    train, test = pictures(rng, 30), pictures(rng, 12)
    losses = {}

    def keep(name):
        def loss(model, batch):
            value = classification_loss(model, batch)
            losses.setdefault(name, []).append(value.item())
            return value

        monkeypatch.setattr(fewshot, "classification_loss", loss)

    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        keep(name)
        torch.rand(3)
        run = replace(RUN, steps=3, seed=seed)
        finetune_accuracy(create(CONFIG).encoder, train=train, test=test, config=run)

    assert losses["first"] == losses["again"]
    assert losses["first"] != losses["other"]


def test_epochs_stand_for_whole_batches(rng, monkeypatch):
    steps = []
    monkeypatch.setattr(
        fewshot,
        "classification_loss",
        lambda model, batch: steps.append(1) or classification_loss(model, batch),
    )

    finetune_accuracy(
        create(CONFIG).encoder,
        train=pictures(rng, 30),
        test=pictures(rng, 12),
        config=replace(RUN, steps=None, epochs=2),
    )

    assert len(steps) == 6


def test_a_batch_larger_than_the_pictures_is_all_of_them(rng):
    run = replace(RUN, steps=2, batch=50)

    finetune_accuracy(
        create(CONFIG).encoder, train=pictures(rng, 30), test=pictures(rng, 12), config=run
    )


def test_loss_is_the_cross_entropy_of_the_classes(rng):
    from mae.data.batch import Batch
    from mae.model.classifier import Classifier

    part = pictures(rng, 6)
    model = Classifier(create(CONFIG).encoder, num_classes=3)
    labels = torch.from_numpy(part.labels)

    loss = classification_loss(model, Batch(part.images, torch.rand(6, 15), labels, labels))

    assert loss.item() == pytest.approx(np.log(3), abs=1e-3)  # the head starts near zero


def test_the_comparison_has_three_ways_over_the_same_labels(rng):
    train, test = pictures(rng, 36), pictures(rng, 12)

    found = few_label_finetuning(
        create(CONFIG).encoder, train=train, test=test, config=replace(RUN, steps=2)
    )

    assert found.pixels.mean == 1
    assert 0 <= found.pretrained.mean <= 1
    assert found.to_dict().keys() == {"about", "pretrained", "scratch", "pixels"}
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()
    assert "10 labels a class; mean ± deviation of 3 seeds" in found.about
