"""The networks: an encoder with mask tokens or ours, and a decoder of any depth; what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mae.config.model import ModelConfig
from mae.model.autoencoder import MaskedAutoencoder, Output
from mae.model.create import create
from mae.model.masking import Masking, gather, random_masking


class MaskTokensInEncoder(nn.Module):
    """A masked autoencoder whose encoder takes a mask token in the place of each hidden patch.

    Whatever saves our step work and is not the claim is saved here as well: only visible patches
    are projected, tokens stay in shuffled order, the last decoder block and the head give hidden
    patches alone. What is left is where the mask tokens join.

    Source: paper, Table 1c and section 4.2 ("w/ [M]").
    """

    def __init__(self, model: MaskedAutoencoder) -> None:
        super().__init__()
        self.model = model
        self.mask_token = nn.Parameter(torch.zeros_like(model.encoder.cls_token))

    def normalize(self, images: Tensor) -> Tensor:
        """Scale stored pixel values B C H W to what the network takes."""
        return self.model.normalize(images)

    def forward(self, images: Tensor, *, noise: Tensor) -> Output:
        """Give the loss of rebuilding the patches that `noise` hides, as ours does."""
        model, decoder = self.model, self.model.decoder
        grid = model.grid_of(images, per_patch=noise)
        masking = random_masking(noise, num_keep=model.objective.num_keep(noise.shape[1]))
        ids = torch.cat([masking.ids_keep, masking.ids_hidden], dim=1)  # B L
        latent = self.encode(images, masking, ids, grid=grid)  # B 1+L D
        # The decoder is told that nothing is hidden: it adds no mask tokens of its own.
        seen = Masking(ids, ids[:, :0], masking.ids_restore, masking.mask)
        first = 1 + masking.ids_keep.shape[1]
        tokens = decoder.decode(latent, seen, grid=grid, first=first)
        pred = decoder.pred(decoder.norm(tokens))  # B L-K P
        target = model.target(gather(model.patches(images), masking.ids_hidden))
        return Output((pred - target).square().mean(), masking.mask)

    def encode(
        self, images: Tensor, masking: Masking, ids: Tensor, *, grid: tuple[int, int]
    ) -> Tensor:
        """Encode cls, visible patches and mask tokens, in this order: B 1+L D."""
        encoder = self.model.encoder
        B, num_hidden = masking.ids_hidden.shape
        visible = encoder.patch_embed(gather(self.model.patches(images), masking.ids_keep))
        hidden = self.mask_token.expand(B, num_hidden, -1)
        positions = encoder.positions(grid).expand(B, -1, -1)  # B 1+L D
        places = torch.cat([positions[:, :1], gather(positions[:, 1:], ids)], dim=1)
        cls = encoder.cls_token.expand(B, -1, -1)
        tokens = torch.cat([cls, visible, hidden], dim=1) + places
        for block in encoder.blocks:
            tokens = block(tokens)
        return encoder.norm(tokens)


class Side(NamedTuple):
    """One of the four networks."""

    with_mask_tokens: bool
    """Whether the encoder meets them."""
    decoder_depth: int


def _pairing(*, theirs: int, ours: int) -> tuple[Side, Side]:
    return (
        Side(with_mask_tokens=True, decoder_depth=theirs),
        Side(with_mask_tokens=False, decoder_depth=ours),
    )


PAIRINGS = (_pairing(theirs=8, ours=8), _pairing(theirs=1, ours=1), _pairing(theirs=8, ours=1))
"""The last is the paper's: what was gained in all."""
SIDES = tuple(dict.fromkeys(side for pairing in PAIRINGS for side in pairing))


def make_sides(config: ModelConfig, sides: Sequence[Side] = SIDES) -> dict[Side, nn.Module]:
    """Make networks that share an encoder, and a decoder where it has the same depth."""
    made = dict[int, MaskedAutoencoder]()
    for depth in sorted({side.decoder_depth for side in sides}):
        made[depth] = create(replace(config, decoder_depth=depth))
        made[depth].encoder = next(iter(made.values())).encoder
    return {
        side: MaskTokensInEncoder(made[side.decoder_depth])
        if side.with_mask_tokens
        else made[side.decoder_depth]
        for side in sides
    }


def count_flops(config: ModelConfig, side: Side) -> int:
    """Count the operations of forward and backward of one image; no number is computed."""
    config = replace(config, decoder_depth=side.decoder_depth)
    with torch.device("meta"):
        ours = MaskedAutoencoder(config)
        model = MaskTokensInEncoder(ours) if side.with_mask_tokens else ours
        images = torch.empty(1, config.channels, *config.image_size)
        noise = torch.empty(1, config.num_patches)
    with FlopCounterMode(display=False) as counter:
        model(images, noise=noise).loss.backward()
    return counter.get_total_flops()
