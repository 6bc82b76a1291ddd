"""The two sides: a step of ours, and one of transformers' ViTMAE with the same weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from mae.config import PretrainConfig
from mae.data.batch import Batch
from mae.jobs.setup import device_of
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.pixels import normalize_pixels
from mae.network import ModelConfig
from mae.train.state import TrainState
from mae.train.step import OptimiserStep, pretraining_loss
from mae.weights.huggingface import LAYOUT
from mae.weights.layout import spelled, split_qkv

RATE = 1e-4

Step = Callable[[Batch], torch.Tensor]
"""Updates the weights by a batch and gives the loss, still on the device."""


def synthetic_batch(config: ModelConfig, count: int, device: torch.device) -> Batch:
    """Draw stored pixels and noise on the device."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (count, config.channels, *config.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator, device=device)
    noise = torch.rand(count, config.num_patches, generator=generator, device=device)
    return Batch(images, noise, torch.arange(count), torch.full((count,), -1, device=device))


def our_step(state: TrainState, config: PretrainConfig) -> Step:
    """Give the step that `mae pretrain` makes."""
    step = OptimiserStep(loss=pretraining_loss, config=config, device=device_of(state))
    return lambda batch: step(state, batch, lr=RATE).loss


def transformers_config(config: ModelConfig) -> ViTMAEConfig:
    """Say in transformers' words what a network of square pictures is; the eps is ours too."""
    return ViTMAEConfig(
        image_size=config.image_size[0],
        patch_size=config.patch_size,
        num_channels=config.channels,
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        intermediate_size=int(config.width * config.mlp_ratio),
        decoder_hidden_size=config.decoder_width,
        decoder_num_hidden_layers=config.decoder_depth,
        decoder_num_attention_heads=config.decoder_heads,
        decoder_intermediate_size=int(config.decoder_width * config.mlp_ratio),
        mask_ratio=config.mask_ratio,
        norm_pix_loss=config.normalize_target,
        layer_norm_eps=config.norm_eps,
    )


def transformers_model(ours: MaskedAutoencoder) -> ViTMAEForPreTraining:
    """Give transformers' model with copies of our weights and position tables, eps as ours.

    Its own initial weights would take a minute to draw at ViT-H.
    """
    with torch.device("meta"):
        theirs = ViTMAEForPreTraining(transformers_config(ours.config))
    ways = (spelled(table, split_qkv(ours.state_dict())) for table in LAYOUT.tables)
    named = next(way for way in ways if way.keys() == theirs.state_dict().keys())
    theirs.load_state_dict({k: v.detach().clone() for k, v in named.items()}, assign=True)
    return theirs.train()


def their_step(ours: MaskedAutoencoder, config: PretrainConfig) -> Step:
    """Give a step as their users write it: autocast, fused AdamW; no check, no clipping."""
    model = transformers_model(ours)
    device = next(model.parameters()).device
    trained = [p for p in model.parameters() if p.requires_grad]
    optim = config.optim
    optimizer = torch.optim.AdamW(
        trained, lr=RATE, betas=optim.betas, weight_decay=optim.weight_decay, fused=True
    )
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    half = torch.float16 if config.precision == "fp16" else torch.bfloat16

    def step(batch: Batch) -> torch.Tensor:
        images = normalize_pixels(batch.images, ours.config.pixels)
        with torch.autocast(device.type, half, config.precision != "float32"):
            loss = model(images, noise=batch.noise).loss
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return step
