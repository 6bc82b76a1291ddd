from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from mae.config.run import AugmentConfig
from mae.data.batching.batch import Bad
from mae.data.batching.loader import batches
from mae.data.decoding.header import kind_of
from mae.data.sources.source import ArraySource
from mae.evaluation import linear_probe as paper_linear
from mae.evaluation.linear_probe import (
    PROTOCOL,
    cls_features,
    encoded_batch,
    linear_head,
    max_update,
    train_head,
)
from mae.model.create import create
from mae.parallel.processes import Communicator, ProcessInfo
from mae.progress import Progress
from mae.train.measure import count_steps
from mae.train.resolve import batch_plan
from tests.model.tiny import tiny_config

CROPS, QUIET = PROTOCOL.augment, Progress(quiet=True)
WHOLE = AugmentConfig(crop_scale=(1.0, 1.0), flip=0.5)
# The paper's rate is for batches of 16,384; per 256 images, tiny ones need a much larger one.
SHORT = replace(PROTOCOL, epochs=4, batch=11, optim=replace(PROTOCOL.optim, lr=400.0))


@pytest.fixture
def encoder():
    return create(tiny_config()).encoder.eval()


def easy(rng, n):
    """Give images of three classes that differ by brightness."""
    labels = np.arange(n) % 3
    images = rng.integers(0, 60, (n, 12, 20, 3)) + 80 * labels[:, None, None, None]
    return ArraySource(images.astype(np.uint8), labels=labels, class_names=("a", "b", "c"))


def plan_of(encoder, source, config, augment=WHOLE):
    config = replace(config, model=encoder.config, augment=augment)
    return batch_plan(config, source, kind_of(encoder.config))


def trained(encoder, source, config=SHORT, progress=QUIET):
    plan = plan_of(encoder, source, config)
    num_steps = count_steps(config, plan, encoder)
    return train_head(encoder, plan, config=config, num_steps=num_steps, progress=progress)


def test_the_protocol_is_that_of_table_10():
    assert (PROTOCOL.epochs, PROTOCOL.batch, PROTOCOL.optim.warmup_epochs) == (90, 16384, 10)
    assert PROTOCOL.optim.peak_lr(PROTOCOL.batch) == pytest.approx(6.4)
    assert (PROTOCOL.optim.min_lr, PROTOCOL.optim.weight_decay) == (0, 0)
    assert (CROPS.crop_scale, CROPS.crop_ratio, CROPS.flip) == ((0.08, 1), (3 / 4, 4 / 3), 0.5)
    assert CROPS.crop_clip


def test_the_head_is_a_norm_without_weights_and_a_linear_layer():
    norm, linear = linear_head(500, num_classes=40, seed=3)

    assert isinstance(norm, nn.BatchNorm1d) and not norm.affine and norm.eps == 1e-6
    assert linear.weight.shape == (40, 500) and linear.bias.tolist() == [0] * 40
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.03)
    again, other = (linear_head(500, num_classes=40, seed=s)[1].weight for s in (3, 4))
    assert torch.equal(linear.weight, again) and not torch.equal(linear.weight, other)


def test_the_feature_is_the_cls_token_after_the_norm(encoder, rng, monkeypatch):
    images = torch.from_numpy(rng.integers(0, 255, (7, 3, 12, 20)).astype(np.uint8))

    features = cls_features(encoder, images)

    assert torch.equal(features, encoder(encoder.normalize(images))[:, 0].detach())
    monkeypatch.setattr(paper_linear, "ENCODED", 3)
    torch.testing.assert_close(cls_features(encoder, images), features)
    assert not features.requires_grad


def test_an_easy_task_is_learnt_and_the_encoder_left_bit_for_bit(encoder, rng):
    before = {name: value.clone() for name, value in encoder.state_dict().items()}

    head = trained(encoder.train(), easy(rng, 45), replace(SHORT, epochs=20))

    test = easy(rng, 12)
    images = torch.from_numpy(test.images).permute(0, 3, 1, 2)
    assert head(cls_features(encoder, images)).argmax(dim=1).tolist() == test.labels.tolist()
    assert all(torch.equal(before[name], v) for name, v in encoder.state_dict().items())
    assert encoder.training and all(p.grad is None for p in encoder.parameters())


def test_statistics_are_of_whole_batches_in_training_and_kept_for_the_test(encoder, rng):
    source, one = easy(rng, 12), replace(SHORT, steps=1, batch=11)
    plan = plan_of(encoder, source, one)
    batch = next(iter(batches(plan, start=0, stop=1, workers=0)))

    head = train_head(encoder, plan, config=one, num_steps=1, progress=QUIET)

    features = cls_features(encoder, batch.images)
    norm = head[0]
    torch.testing.assert_close(norm.running_mean, 0.1 * features.mean(dim=0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * features.var(dim=0))
    assert not head.training
    expected = head[1]((features - norm.running_mean) / (norm.running_var + 1e-6).sqrt())
    torch.testing.assert_close(head(features), expected)


def test_the_rate_warms_up_for_its_share_and_falls_to_nothing(encoder, rng):
    rates = []

    class Kept(Progress):
        def update(self, step, *, lr, **numbers):
            rates.append(lr)

    trained(encoder, easy(rng, 40), replace(PROTOCOL, batch=40), Kept(quiet=True))

    assert len(rates) == 90 and rates[0] == 0
    assert rates[10] == max(rates) == pytest.approx(0.1 * 40 / 256)
    assert rates[50] == pytest.approx(0.5 * rates[10]) and rates[-1] < 0.001 * rates[10]


def test_a_head_is_a_function_of_its_seed(encoder, rng):
    source = easy(rng, 24)

    first, again, other = (
        trained(encoder, source, replace(SHORT, seed=seed))[1].weight for seed in (1, 1, 2)
    )

    assert torch.equal(first, again) and not torch.equal(first, other)


class Recorded(Communicator):
    """Stands in for the processes of a job: gives each what all of them gathered."""

    def __init__(self, process, gathered):
        super().__init__(process)
        self.gathered = gathered

    def all_gather(self, mine):
        self.gathered.append(mine)
        return self.gathered


@pytest.mark.parametrize("count", [2, 3, 11])
def test_shares_of_a_batch_become_the_whole_batch_in_its_order(encoder, rng, monkeypatch, count):
    monkeypatch.setattr(paper_linear, "ENCODED", 1)  # the size of a group may change a last bit
    plan = plan_of(encoder, easy(rng, 24), SHORT, augment=CROPS)
    whole = next(batches(plan, start=1, stop=2, workers=0))
    gathered = []

    for rank in range(count):
        own = replace(plan, share=(rank, count))
        share = next(batches(own, start=1, stop=2, workers=0))._replace(bad=(Bad(rank, "", ""),))
        ranks = Recorded(ProcessInfo(rank, count), gathered)
        found = encoded_batch(encoder, share, ranks=ranks)

    assert torch.equal(found.images, cls_features(encoder, whole.images))
    assert torch.equal(found.ids, whole.ids) and torch.equal(found.labels, whole.labels)
    assert [bad.id for bad in found.bad] == list(range(count))


def test_epochs_are_whole_batches(encoder, rng):
    plan = plan_of(encoder, easy(rng, 24), SHORT, augment=CROPS)

    assert plan.batches_per_epoch == 2 and count_steps(SHORT, plan, encoder) == 8
    assert count_steps(replace(SHORT, steps=5), plan, encoder) == 5


def test_the_largest_update_tells_the_paper_from_a_handful_of_images():
    few = replace(PROTOCOL, batch=100)
    # 90 steps, whose rates are half the peak of 0.1 * 100 / 256 in the mean; 0.01 of them counts.
    assert max_update(few, num_steps=90) == pytest.approx(90 / 2 * 0.0390625 * 0.01, rel=0.02)

    # 78 steps an epoch, as of ImageNet.
    assert max_update(PROTOCOL, num_steps=90 * 78) == pytest.approx(225, rel=0.01)
