import json
from dataclasses import replace

import numpy as np
import torch

from mae.config.model import ModelConfig
from mae.evaluation import few_shot as fewshot
from mae.evaluation.features import LabelledImages
from mae.evaluation.few_shot import (
    FEW_SHOT_SCRATCH,
    few_label_finetuning,
    finetune_accuracy,
    finetune_in_memory,
)
from mae.model.create import create
from mae.train.finetune_batch import soft_target_loss

CONFIG = ModelConfig(
    image_size=(12, 20), patch_size=4, channels=3, width=24, depth=1, num_heads=3,
    decoder_width=16, decoder_depth=1, decoder_heads=2,
)  # fmt: skip
RUN = replace(FEW_SHOT_SCRATCH, num_classes=3, steps=30, batch=9)


def images(rng, n):
    labels = np.arange(n) % 3
    images = rng.integers(0, 100, (n, 3, 12, 20)) + 70 * labels[:, None, None, None]
    return LabelledImages(torch.from_numpy(images.astype(np.uint8)), labels)


def test_fine_tuning_learns_what_is_easy_and_leaves_the_encoder_as_it_was(rng):
    encoder = create(CONFIG).encoder
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    train, test = images(rng, 30), images(rng, 12)

    accuracy = finetune_accuracy(encoder, train=train, test=test, config=RUN)

    assert accuracy == 1
    assert all(torch.equal(before[name], v) for name, v in encoder.state_dict().items())


def test_fine_tuning_is_a_function_of_its_seed_alone(rng, monkeypatch):
    train, test = images(rng, 30), images(rng, 12)
    losses = {}

    def keep(name):
        def loss(model, batch):
            value = soft_target_loss(model, batch)
            losses.setdefault(name, []).append(value.item())
            return value

        monkeypatch.setattr(fewshot, "soft_target_loss", loss)

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
        "soft_target_loss",
        lambda model, batch: steps.append(1) or soft_target_loss(model, batch),
    )

    finetune_accuracy(
        create(CONFIG).encoder,
        train=images(rng, 30),
        test=images(rng, 12),
        config=replace(RUN, steps=None, epochs=2),
    )

    assert len(steps) == 6


def test_a_batch_larger_than_the_images_is_all_of_them(rng):
    run = replace(RUN, steps=2, batch=50)

    finetune_accuracy(
        create(CONFIG).encoder, train=images(rng, 30), test=images(rng, 12), config=run
    )


def test_only_the_last_block_and_the_head_learn_where_one_block_is_trained(rng):
    encoder = create(replace(CONFIG, depth=2)).encoder
    run = replace(RUN, steps=2, train_blocks=1, layer_decay=0.5, drop_path=0.1)

    model = finetune_in_memory(encoder, train=images(rng, 30), config=run)

    before, after = encoder.state_dict(), model.encoder.state_dict()
    same = {name for name in after if torch.equal(before[name], after[name])}
    assert {name for name in after if not name.startswith("blocks.1.")} == same
    assert not torch.equal(model.head.weight, torch.zeros_like(model.head.weight))


def test_the_average_of_the_weights_is_what_is_given(rng):
    # With a decay near 1 the average stays where the weights were before the first step.
    run = replace(RUN, steps=3, ema=0.999999)
    encoder, train = create(CONFIG).encoder, images(rng, 30)

    averaged = finetune_in_memory(encoder, train=train, config=run)
    last = finetune_in_memory(encoder, train=train, config=replace(run, ema=None))

    start = encoder.state_dict()["blocks.0.mlp.fc1.weight"]
    moved = [(m.encoder.blocks[0].mlp.fc1.weight - start).abs().max() for m in (averaged, last)]
    assert moved[0] < 1e-4 < moved[1]


def test_the_comparison_has_three_ways_over_the_same_labels(rng):
    train, test = images(rng, 36), images(rng, 12)

    found = few_label_finetuning(
        create(CONFIG).encoder, train=train, test=test, config=replace(RUN, steps=2), scratch=RUN
    )

    assert found["pixels"]["mean"] == 1
    assert 0 <= found["pretrained"]["mean"] <= 1
    assert found.keys() == {"about", "pretrained", "scratch", "pixels"}
    assert json.loads(json.dumps(found)) == found
    assert "10 labels a class; mean ± std of 3 seeds" in found["about"]
