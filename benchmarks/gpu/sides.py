"""The sides of the GPU benchmark: our step, and those of the peers as their users write them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from mae.config.model import ModelConfig
from mae.config.objective import ObjectiveConfig
from mae.config.run import PretrainConfig
from mae.data.batching.batch import Batch
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.normalize import normalize_pixels
from mae.runs.state import TrainState
from mae.train.resolve import device_of
from mae.train.step import Loss, OptimiserStep, pretraining_loss
from mae.weights.formats.huggingface import TABLES, config_fields
from mae.weights.formats.name_table import renamed, split_qkv

RATE = 1e-4

Step = Callable[[Batch], Tensor]
"""Updates the weights by a batch and gives the loss, still on the device."""


def synthetic_batch(config: ModelConfig, count: int, device: torch.device) -> Batch:
    """Draw stored pixels and noise on the device."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (count, config.channels, *config.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator, device=device)
    noise = torch.rand(count, config.num_patches, generator=generator, device=device)
    return Batch(images, noise, torch.arange(count), torch.full((count,), -1, device=device))


def our_step(state: TrainState, config: PretrainConfig, *, loss: Loss = pretraining_loss) -> Step:
    """Return the step that `mae pretrain` makes."""
    step = OptimiserStep(loss=loss, config=config, device=device_of(state))
    return lambda batch: step(state, batch, lr=RATE).loss


def compile_blocks(model: nn.Module) -> None:
    """Compile each transformer block of any of the networks in place; equal blocks share code."""
    for stack in model.modules():
        blocks = list(stack.children())
        several = len(blocks) > 1 and len({type(block) for block in blocks}) == 1
        if isinstance(stack, nn.ModuleList | nn.Sequential) and several:
            for block in blocks:
                block.compile(dynamic=False)


def graphed_step(state: TrainState, config: PretrainConfig, batch: Batch) -> Step:
    """Capture forward and backward of a whole batch as one CUDA graph.

    `mae pretrain` does not do this: the graph has one batch size, and each replay overwrites the
    gradients, which micro-batches add up.
    """
    model, optimizer = state.model, state.optimizer
    half = torch.float16 if config.half == "fp16" else torch.bfloat16
    # Outside the graph: mean and std come from the host, which a capture refuses.
    images = model.normalize(batch.images)

    def forward_backward() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", half, config.half is not None, cache_enabled=False):
            loss: Tensor = model(images, noise=batch.noise).loss
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            forward_backward()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = forward_backward()

    def step(given: Batch) -> Tensor:
        images.copy_(model.normalize(given.images))
        batch.noise.copy_(given.noise)
        graph.replay()
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in model.parameters() if p.grad is not None]
        )
        if bool(loss.isfinite() & norm.isfinite()):
            optimizer.step()
        return loss

    return step


def transformers_config(config: ModelConfig, objective: ObjectiveConfig) -> ViTMAEConfig:
    """Return transformers' configuration of a network of square images, with our eps."""
    return ViTMAEConfig(**config_fields(config, objective))


def transformers_model(ours: MaskedAutoencoder) -> ViTMAEForPreTraining:
    """Return transformers' model with copies of our weights and position tables, eps as ours.

    Its own initial weights would take a minute to draw at ViT-H.
    """
    with torch.device("meta"):
        theirs = ViTMAEForPreTraining(transformers_config(ours.config, ours.objective))
    ways = (renamed(table, split_qkv(ours.state_dict())) for table in TABLES)
    named = next(way for way in ways if way.keys() == theirs.state_dict().keys())
    theirs.load_state_dict({k: v.detach().clone() for k, v in named.items()}, assign=True)
    return theirs.train()


def peer_step(model: nn.Module, config: PretrainConfig) -> Step:
    """Return a step as the peers' users write it: autocast, fused AdamW; no check, no clipping."""
    device = next(model.parameters()).device
    trained = [p for p in model.parameters() if p.requires_grad]
    optim = config.optim
    optimizer = torch.optim.AdamW(
        trained, lr=RATE, betas=optim.betas, weight_decay=optim.weight_decay, fused=True
    )
    scaler = torch.amp.GradScaler(device.type, enabled=config.half == "fp16")
    half = torch.float16 if config.half == "fp16" else torch.bfloat16

    def step(batch: Batch) -> Tensor:
        images = normalize_pixels(batch.images, config.model.pixels)
        with torch.autocast(device.type, half, config.half is not None):
            given = model(images, noise=batch.noise)
        loss: Tensor = getattr(given, "loss", given)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return step
