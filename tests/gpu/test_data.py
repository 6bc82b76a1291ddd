"""What the data's way does on a GPU."""

from __future__ import annotations

import numpy as np
import torch

from mae.data.augment.batched_crop import crops_on_device, resized_crops
from mae.data.batching.loader import batches, on_device
from tests.data.augment.test_crop import batch, drawn_box
from tests.data.batching.test_loader import Endless, plan_of


def test_batched_crops_are_the_same_bits_on_a_gpu() -> None:
    images = batch(200, 19, 31, 3)
    rng = np.random.default_rng(5)
    boxes = np.array([drawn_box(rng, 19, 31) for _ in images])
    flips = rng.random(200) < 0.5

    there = crops_on_device(torch.from_numpy(images).cuda(), boxes, size=(16, 24), flips=flips)

    assert there.is_cuda
    assert np.array_equal(
        there.cpu().numpy(), resized_crops(images, boxes, size=(16, 24), flips=flips)
    )


def test_a_gpu_gets_every_batch_whole_while_it_computes() -> None:
    plan = plan_of(Endless(), batch=64, size=(128, 128))
    made = list(batches(plan, start=0, stop=30, workers=0))
    busy = torch.randn(2048, 2048, device="cuda")

    sums = []
    for given in on_device(made, torch.device("cuda")):
        assert given.images.is_cuda and not given.ids.is_cuda
        assert given.images.is_contiguous(memory_format=torch.channels_last)
        busy = (busy @ busy).clamp(-1, 1)  # keeps the stream of the step behind the copies
        sums.append((given.images.double().sum(), given.noise.double().sum()))
        del given

    for (images, noise), there in zip(sums, made, strict=True):
        assert images.cpu() == there.images.double().sum()
        assert torch.isclose(noise.cpu(), there.noise.double().sum())
