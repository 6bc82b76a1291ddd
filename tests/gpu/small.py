"""A small model whose heads fit a GPU's kernels, and stored batches for it."""

from __future__ import annotations

from dataclasses import replace

import torch

from mae.config.run import OptimConfig, PretrainConfig
from mae.data.batching.batch import Batch
from mae.model.create import create
from mae.runs.state import TrainState
from mae.train.resolve import new_state
from tests.model.tiny import tiny_config

COUNT = 6
MODEL = tiny_config(grid=(4, 6), width=96, decoder_width=64)  # heads of 32
CONFIG = PretrainConfig(model=MODEL, batch=COUNT, optim=OptimConfig(lr=0.01, clip_norm=1.0))


def small_batches(number: int) -> list[Batch]:
    """Draw batches of stored pixels, on the host."""
    generator, made = torch.Generator().manual_seed(3), []
    shape = (COUNT, MODEL.channels, *MODEL.image_size)
    for i in range(number):
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        noise = torch.rand(COUNT, MODEL.num_patches, generator=generator)
        ids = torch.arange(COUNT) + i * COUNT
        made.append(Batch(images, noise, ids, torch.full((COUNT,), -1)))
    return made


def state_of(device: str, *, precision: str = "float32") -> TrainState:
    """Give the first state of a run, with a scale that does not overflow in fp16."""
    config = replace(CONFIG, device=device, precision=precision)  # type: ignore[arg-type]
    state = new_state(create(MODEL, seed=5), config)
    if state.scaler is not None:
        state.scaler = torch.amp.GradScaler(device, init_scale=1024.0)
    return state
