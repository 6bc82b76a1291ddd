"""The sides: our step, and those of transformers, lightly and a textbook as their users write it.

All sides have a network of the same size, the same batch and the same share of hidden patches.
`SETTINGS` says what else each of them does.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from benchmarks.gpu.sides import RATE, our_step, synthetic_batch, transformers_model
from benchmarks.textbook import TextbookMAE
from mae.config.model import ModelConfig
from mae.config.objective import ObjectiveConfig
from mae.config.run import PretrainConfig
from mae.config.sizes import model_config
from mae.data.batching.batch import Batch
from mae.model.create import create
from mae.train.resolve import new_state
from mae.train.step import pretraining_loss

PEERS = ("transformers", "lightly", "textbook")
NAMES = ("mae", *PEERS)
SETTINGS = {
    "mae": "as `mae pretrain` makes the step, by --precision; whole batch in one pass, not "
    "compiled; fused AdamW; uint8 images, channels last, normalised within the step",
    "peers": "float32, or bf16 by torch.autocast('cpu', torch.bfloat16) around the forward pass; "
    "whole batch in one pass, not compiled; torch.optim.AdamW by its defaults; float32 images, "
    "normalised before the step",
}

# Small images on a laptop, and two sizes of the paper's way to cut 224 x 224 into 196.
SIZES: dict[str, tuple[ModelConfig, int]] = {
    "tiny": (
        model_config("vit-ti/4", image_size=32, decoder_width=96, decoder_depth=2, decoder_heads=3),
        128,
    ),
    "vit-s/16": (model_config("vit-s/16"), 32),
    "vit-b/16": (model_config("vit-b/16"), 16),
}
"""Network and batch."""


@dataclass(slots=True)
class Side:
    """A network in training in one precision."""

    name: str
    precision: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Batch], Tensor]
    step: Callable[[Batch], Tensor]
    """Updates the weights and gives the loss."""
    updating: float = 0.0
    """Seconds that the optimizer took in all steps so far, in every precision."""
    _began: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.optimizer.register_step_pre_hook(self._begin)
        self.optimizer.register_step_post_hook(self._end)

    def _begin(self, *_: Any) -> None:
        self._began = time.perf_counter()

    def _end(self, *_: Any) -> None:
        self.updating += time.perf_counter() - self._began


def make_sides(
    name: str, config: ModelConfig, batch: int, precisions: Sequence[str]
) -> tuple[Side, ...]:
    """Build one network and a side for each precision; they share its weights and optimizer."""
    if name == "mae":
        run = PretrainConfig(model=config, batch=batch, device="cpu")
        state = new_state(create(config), run)
        model, optimizer = state.model, state.optimizer
        steps = {p: our_step(state, replace(run, precision=p)) for p in precisions}  # type: ignore[arg-type]
        loss_of = partial(pretraining_loss, model)
    else:
        own = {"lightly": Lightly, "textbook": TextbookMAE}
        model = own[name](config) if name in own else transformers_model(create(config))
        model.train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.95), weight_decay=0.05)
        loss_of = partial(_peer_loss, model)
        steps = {p: partial(_peer_step, optimizer, _cast(loss_of, p)) for p in precisions}
    return tuple(
        Side(name, precision, model, optimizer, _cast(loss_of, precision), steps[precision])
        for precision in precisions
    )


def _cast(loss_of: Callable[[Batch], Tensor], precision: str) -> Callable[[Batch], Tensor]:
    """Compute the loss under autocast, if in bf16."""

    def compute(batch: Batch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, precision == "bf16"):
            return loss_of(batch)

    return compute


def _peer_loss(model: nn.Module, batch: Batch) -> Tensor:
    given = model(batch.images, batch.noise)
    loss: Tensor = getattr(given, "loss", given)
    return loss


def _peer_step(
    optimizer: torch.optim.Optimizer, loss_of: Callable[[Batch], Tensor], batch: Batch
) -> Tensor:
    loss = loss_of(batch)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


def make_batch(name: str, config: ModelConfig, count: int) -> Batch:
    """Draw a batch: uint8 pixels as our loader has them, channels last; normalised for peers."""
    batch = synthetic_batch(config, count, torch.device("cpu"))
    if name == "mae":
        return batch._replace(images=batch.images.to(memory_format=torch.channels_last))
    return batch._replace(images=batch.images.float() / 127.5 - 1)


class Lightly(nn.Module):
    """The masked autoencoder of lightly's examples, with the noise as an argument."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations, its own and those of its imports
            modules = import_module("lightly.models.modules")
            self.utils = import_module("lightly.models.utils")
            shape = {"patch_size": config.patch_size, "embed_dim": config.width}
            vit = VisionTransformer(
                img_size=config.image_size,
                in_chans=config.channels,
                depth=config.depth,
                num_heads=config.num_heads,
                num_classes=0,
                **shape,
            )
            self.backbone = modules.MaskedVisionTransformerTIMM(vit=vit)
            self.decoder = modules.MAEDecoderTIMM(
                num_patches=config.num_patches,
                in_chans=config.channels,
                decoder_embed_dim=config.decoder_width,
                decoder_depth=config.decoder_depth,
                decoder_num_heads=config.decoder_heads,
                **shape,
            )
        self.config = config

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """Return the loss of plain pixels, as the examples do."""
        utils, B, keep = self.utils, len(images), 1 + ObjectiveConfig().num_keep(noise.shape[1])
        order = torch.cat([noise.new_full((B, 1), -1.0), noise], dim=1).argsort(dim=1)
        idx_keep, idx_mask = order[:, :keep], order[:, keep:]
        embedded = self.decoder.embed(self.backbone.encode(images, idx_keep=idx_keep))
        tokens = utils.repeat_token(self.decoder.mask_token, order.shape)
        tokens = utils.set_at_index(tokens, idx_keep, embedded.type_as(tokens))
        decoded = self.decoder.decode(tokens)
        pred = self.decoder.predict(utils.get_at_index(decoded, idx_mask))
        patches = utils.patchify(images, patch_size=self.config.patch_size)
        target = utils.get_at_index(patches, idx_mask - 1)
        return nn.functional.mse_loss(pred, target)
