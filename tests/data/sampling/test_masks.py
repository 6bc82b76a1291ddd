"""Masks depend on seed, epoch and sample alone, and one module draws them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import mae
from mae.config.objective import ObjectiveConfig
from mae.data.sampling.masks import mask_noise

IDS = np.array([7, 0, 12345])
RANDOM = ObjectiveConfig()


def test_noise_depends_on_seed_epoch_and_sample_alone() -> None:
    noise = mask_noise(IDS, RANDOM, grid=(3, 5), seed=1, epoch=2)

    assert noise.shape == (3, 15) and noise.dtype == torch.float32
    assert torch.equal(noise[1:2], mask_noise(IDS[1:2], RANDOM, grid=(3, 5), seed=1, epoch=2))
    for other in ({"seed": 2, "epoch": 2}, {"seed": 1, "epoch": 3}):
        assert not torch.equal(noise, mask_noise(IDS, RANDOM, grid=(3, 5), **other))


def test_noise_is_bit_for_bit_that_of_version_0_1() -> None:
    noise = mask_noise(np.array([7, 2]), RANDOM, grid=(2, 3), seed=5, epoch=3)

    assert (noise * 2**24).tolist() == [  # printed by 0.1.0
        [5857972, 186335, 837815, 10152964, 10701156, 9039194],
        [4669147, 1742107, 14609694, 14433027, 15296773, 12036941],
    ]


def test_one_module_alone_draws_mask_noise() -> None:
    source = Path(mae.__file__).parent

    users = {p.name for p in source.rglob("*.py") if "Stream.MASK" in p.read_text("utf-8")}

    assert users == {"masks.py"}
