"""One fine-tuning step against a plain loop with timm's network, Mixup and groups."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from timm.data import mixup as timms
from timm.loss import SoftTargetCrossEntropy
from timm.optim import param_groups_layer_decay

from mae.config.run import FinetuneConfig, MixConfig, OptimConfig
from mae.data.augment.mixup import mixing
from mae.data.batching.batch import Batch, BatchPlan, training_batch
from mae.data.decoding.decode import PixelKind
from mae.data.sampling.draws import Stream, uniform
from mae.data.sources.source import ArraySource
from mae.model.classifier import Classifier
from mae.model.encoder import Encoder
from mae.runs.state import TrainState
from mae.train.finetune_batch import finetune_batch, soft_target_loss
from mae.train.optim.parameter_groups import choose_trained, create_optimizer
from mae.train.step import OptimiserStep
from mae.weights.formats.facebook import to_theirs
from tests.model.tiny import scrambled, tiny_config

B, CLASSES, DEPTH, STEP = 8, 5, 3, 4
MODEL = tiny_config(depth=DEPTH)
CPU = torch.device("cpu")
CONFIG = FinetuneConfig(
    model=MODEL,
    num_classes=CLASSES,
    batch=B,
    layer_decay=0.65,
    drop_path=0.4,
    mix=MixConfig(mixup=0.8, cutmix=1.0, smoothing=0.1),
    optim=OptimConfig(betas=(0.9, 0.999), decay_tokens=False),
)


def plan(**fields: object) -> BatchPlan:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6 * B, *MODEL.image_size, 3), dtype=np.uint8)
    given = {
        "source": ArraySource(images, labels=np.arange(6 * B) % CLASSES),
        "kind": PixelKind("uint8", 3),
        "size": MODEL.image_size,
        "augment": CONFIG.augment,
        "batch": B,
        "seed": CONFIG.seed,
        "num_drops": 2 * DEPTH,
    }
    return BatchPlan(**(given | fields))


def classifier() -> Classifier:
    model = Classifier(Encoder(MODEL), num_classes=CLASSES, drop_path=CONFIG.drop_path)
    choose_trained(model, None)
    # In double precision: where a gradient is zero but for rounding, AdamW would show the rounding.
    return scrambled(model, torch.Generator().manual_seed(0)).double().train()


def step_of_ours(model: Classifier, batch: Batch, *, micro_batch: int | None = None) -> float:
    optimizer = create_optimizer(model, CONFIG.optim, layer_decay=CONFIG.layer_decay, depth=DEPTH)
    config = replace(CONFIG, micro_batch=micro_batch)
    step = OptimiserStep(loss=soft_target_loss, config=config, device=CPU)
    return float(step(TrainState(model, optimizer), batch, lr=0.01).loss)


def doubled(batch: Batch) -> Batch:
    assert batch.targets is not None and batch.drops is not None
    return batch._replace(images=batch.images.double(), targets=batch.targets.double())


def batch_of(step: int) -> Batch:
    made = training_batch(plan(), step)
    return doubled(finetune_batch(made, plan(), CONFIG, step=step, device=CPU))


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_a_step_equals_a_plain_step_with_timms_parts(step, monkeypatch) -> None:
    model = classifier()
    other = timm.models.VisionTransformer(
        img_size=MODEL.image_size, patch_size=4, embed_dim=24, depth=DEPTH, num_heads=3,
        num_classes=CLASSES, global_pool="avg", drop_path_rate=0.4,
    ).double()  # fmt: skip
    other.load_state_dict({to_theirs(name): t for name, t in model.state_dict().items()})
    stored = training_batch(plan(), step)

    loss = step_of_ours(model, batch_of(step))

    how = mixing(CONFIG.mix, seed=CONFIG.seed, step=step, size=plan().size)
    mixup = timms.Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=CLASSES)
    alpha = 0.8 if how.box is None else 1.0
    share = float(np.random.Generator(np.random.PCG64(key(step))).beta(alpha, alpha))
    monkeypatch.setattr(mixup, "_params_per_batch", lambda: (share, how.box is not None))
    centre = uniform(CONFIG.seed, step, np.zeros(1, np.int64), stream=Stream.MIX, count=4)[0, 2:]
    places = iter([int(at * edge) for at, edge in zip(centre.tolist(), plan().size, strict=True)])
    monkeypatch.setattr(np.random, "randint", lambda low, high, size: next(places))
    queue = iter(stored.drops[:, 2:].T)
    monkeypatch.setattr(
        torch.Tensor, "bernoulli_", lambda t, keep: t.copy_(next(queue).view(t.shape) < keep)
    )
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MODEL.pixels.mean, MODEL.pixels.std))
    images, targets = mixup((stored.images / 255 - mean) / std, stored.labels)
    groups = param_groups_layer_decay(
        other, 0.05, no_weight_decay_list=other.no_weight_decay(), layer_decay=0.65
    )
    optimizer = torch.optim.AdamW(
        [{**group, "lr": 0.01 * group["lr_scale"]} for group in groups],
        betas=(0.9, 0.999),
    )  # fmt: skip
    expected = SoftTargetCrossEntropy()(other.train()(images.double()), targets.double())
    expected.backward()
    optimizer.step()
    assert loss == pytest.approx(expected.item(), abs=1e-6)
    theirs = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, theirs[to_theirs(name)], rtol=0, atol=1e-6)


def key(step: int) -> int:
    """Seed of the share, written out from the hash."""
    from mae.data.sampling.draws import splitmix64, stream_key

    zero = np.zeros(1, dtype=np.uint64)
    return int(splitmix64(zero ^ stream_key(CONFIG.seed, step, stream=Stream.MIX_SHARE))[0])


def test_both_ways_of_mixing_are_among_the_steps_compared() -> None:
    ways = [mixing(CONFIG.mix, seed=CONFIG.seed, step=s, size=plan().size).box for s in range(4)]

    assert {box is None for box in ways} == {True, False}


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_micro_batches_change_nothing(micro_batch) -> None:
    whole, parts = classifier(), classifier()

    loss = step_of_ours(whole, batch_of(STEP))

    assert step_of_ours(parts, batch_of(STEP), micro_batch=micro_batch) == pytest.approx(
        loss, abs=1e-6
    )
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_a_batch_is_erased_before_it_is_mixed() -> None:
    config = replace(CONFIG, erase=1.0, mix=MixConfig())

    plain, erased = (
        finetune_batch(training_batch(plan(), 2), plan(), c, step=2, device=CPU)
        for c in (replace(config, erase=0.0), config)
    )

    assert torch.equal(plain.targets, erased.targets)
    changed = (plain.images != erased.images).flatten(1).double().mean(dim=1)
    assert ((changed > 0.01) & (changed < 0.5)).all()
