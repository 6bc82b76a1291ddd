"""The MAE decoder: a lightweight ViT over visible and mask tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae.config.model import ModelConfig
from mae.model.masking import Masking, gather
from mae.model.onednn_linear import Linear
from mae.model.positions import resize_positions, sincos_positions
from mae.model.transformer import Blocks, init_published


class Decoder(nn.Module):
    """Predict the pixels of patches from the latent of the visible ones.

    Tokens stay in the shuffled order (cls, visible, hidden): attention depends on the added
    positions and not on the order, so tokens need no unshuffling
    (docs/decisions/0002-shuffled-decoder.md).

    Source: He et al. 2021, section 3 and Appendix A.1; initialised as in the published code
    (models_mae.py).
    """

    pos_embed: nn.Parameter

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E = config.decoder_width
        self.config = config
        self.embed = Linear(config.width, E)
        self.mask_token = nn.Parameter(torch.empty(1, 1, E))
        self.pos_embed = nn.Parameter(sincos_positions(E, config.grid), requires_grad=False)
        self.blocks = Blocks(config, E, depth=config.decoder_depth, num_heads=config.decoder_heads)
        self.norm = nn.LayerNorm(E, eps=config.norm_eps)
        self.pred = Linear(E, config.patch_values)
        init_published(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, latent: Tensor, masking: Masking, *, grid: tuple[int, int]) -> Tensor:
        """Predict the hidden patches.

        Args:
            latent: B 1+K D, the encoder's output, cls first.
            masking: the visible and hidden patches.
            grid: patches along height and width.

        Returns:
            B L-K P, in the order of `masking.ids_hidden`.
        """
        first = 1 + masking.ids_keep.shape[1]
        tokens = self.decode(latent, masking, grid=grid, first=first)
        return self.pred(self.norm(tokens))  # type: ignore[no-any-return]

    def predict_all(self, latent: Tensor, masking: Masking, *, grid: tuple[int, int]) -> Tensor:
        """Predict every patch, hidden or not, in row-major order: B L P."""
        tokens = self.decode(latent, masking, grid=grid, first=1)
        return gather(self.pred(self.norm(tokens)), masking.ids_restore)

    def decode(
        self, latent: Tensor, masking: Masking, *, grid: tuple[int, int], first: int
    ) -> Tensor:
        """Run the blocks over cls, visible and mask tokens, in this order: B 1+L-first E.

        The last block returns only the tokens from `first` on; it attends to all of them.
        """
        B, num_hidden = masking.ids_hidden.shape
        ids = torch.cat([masking.ids_keep, masking.ids_hidden], dim=1)  # B L
        positions = resize_positions(
            self.pos_embed, grid_from=self.config.grid, grid_to=grid
        )  # 1 1+L E
        own = F.embedding(ids, positions[0, 1:])
        places = torch.cat([positions[:, :1].expand(B, -1, -1), own], dim=1)
        hidden = self.mask_token.expand(B, num_hidden, -1)
        # Under autocast the embedding is bf16; its sum with the float32 positions is float32.
        tokens = torch.cat([self.embed(latent), hidden.to(latent.dtype)], dim=1) + places
        return self.blocks(tokens, first=first)  # type: ignore[no-any-return]
