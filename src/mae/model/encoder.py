"""The MAE encoder: a plain ViT over the visible patches, with feature pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae.config.model import ModelConfig
from mae.errors import ConfigError, ShapeError
from mae.model.masking import gather
from mae.model.normalize import normalize_pixels, require_finite
from mae.model.onednn_linear import Multiplier, linear
from mae.model.patches import patch_grid, patchify, require_channels_first
from mae.model.positions import resize_positions, sincos_positions
from mae.model.transformer import Blocks, init_published

Pool = Literal["mean", "cls", "grid", "tokens"]
POOL_GRID = 3  # cells along each side of the "grid" pool


class PatchEmbed(Multiplier):
    """Linear projection of flattened patches; its weight is stored as a convolution's."""

    def __init__(self, patch_size: int, *, channels: int, width: int) -> None:
        super().__init__()
        # The convolution provides the published names, shapes and bias init. Its forward is not
        # used: gathered patches are projected by a matrix product.
        self.proj = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size)
        nn.init.xavier_uniform_(self.proj.weight.view(width, -1))

    def forward(self, patches: Tensor) -> Tensor:
        """Project B K P, values ordered row, column, channel, to B K D."""
        assert self.proj.bias is not None
        return linear(patches, self.matrix(), self.proj.bias, bf16=self.bf16_matrix)

    def matrix(self) -> Tensor:
        """Return the weight in the order of the values of a patch: D P."""
        return self.proj.weight.permute(0, 2, 3, 1).flatten(1)


class Encoder(nn.Module):
    """A ViT over the visible patches and a cls token.

    Source: He et al. 2021, section 3 and Appendix A.1; initialised as in the published code
    (models_mae.py).
    """

    pos_embed: nn.Parameter

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D = config.width
        self.config = config
        self.cls_token = nn.Parameter(torch.empty(1, 1, D))
        self.pos_embed = nn.Parameter(sincos_positions(D, config.grid), requires_grad=False)
        self.patch_embed = PatchEmbed(config.patch_size, channels=config.channels, width=D)
        self.blocks = Blocks(config, D, depth=config.depth, num_heads=config.num_heads)
        self.norm = nn.LayerNorm(D, eps=config.norm_eps)
        init_published(self)
        nn.init.normal_(self.cls_token, std=0.02)

    def forward(
        self, images: Tensor, ids_keep: Tensor | None = None, *, scales: Tensor | None = None
    ) -> Tensor:
        """Encode the patches named by `ids_keep`, or every patch.

        Args:
            images: B C H W float, normalised; any size divisible by the patch size.
            ids_keep: B K int64, or None for all patches in row-major order.
            scales: B 2*depth, factors of the residual branches (stochastic depth), None for 1.

        Returns:
            B 1+K D after the last norm, cls first.

        Raises:
            ShapeError: for a wrong channel count or a size not divisible by the patch size.
        """
        tokens = self.embed(images, ids_keep)
        return self.norm(self.blocks(tokens, scales=scales))  # type: ignore[no-any-return]

    def embed(self, images: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Return the input of the first block, B 1+K D: see `forward`."""
        return embed_images(
            images,
            ids_keep,
            config=self.config,
            cls_token=self.cls_token,
            pos_embed=self.pos_embed,
            patch_embed=self.patch_embed,
        )

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Return the position table for a grid, resized in 2-D for any but the trained grid."""
        return resize_positions(self.pos_embed, grid_from=self.config.grid, grid_to=grid)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise stored pixel values B C H W for the network, on their own device."""
        return normalize_pixels(images, self.config.pixels)

    @torch.inference_mode()
    def encode(self, images: Tensor, *, pool: Pool = "mean") -> Tensor:
        """Return features of whole images: every patch visible, no randomness.

        Args:
            images: B C H W; uint8 or uint16 as read from a file, or float already normalised.
            pool: "mean" of the patch tokens, "cls" token, "grid" means of a 3 x 3 grid of
                cells (row-major, concatenated), or all patch "tokens".

        Returns:
            B D, or B 9*D for "grid", or B L D for "tokens"; float32.

        Raises:
            ShapeError: for a wrong channel count, order of axes or size.
            DataError: for non-finite pixels.
        """
        grid, images = self._prepared(images)
        return pool_tokens(self(images).float(), pool=pool, grid=grid)

    @torch.inference_mode()
    def attention(self, images: Tensor, *, block: int = -1) -> Tensor:
        """Return the attention weights of a block over whole images, without randomness.

        Args:
            images: as for `encode`.
            block: number of the block from 0; negative numbers count from the last.

        Returns:
            B heads T T float32 with T = 1 + L, cls first; each row sums to 1.

        Raises:
            ConfigError: for a number that is not of a block.
            ShapeError: as `encode`. DataError: as `encode`.
        """
        place, tokens = self._place(block), self.embed(self._prepared(images)[1])
        for each in list(self.blocks)[:place]:
            tokens = each(tokens)
        return self.blocks[place].attention(tokens)  # type: ignore[no-any-return, operator]

    def intermediates(self, images: Tensor, *, blocks: Sequence[int] = (-1,)) -> tuple[Tensor, ...]:
        """Return the patch tokens after some blocks as maps, before the encoder's last norm.

        Gradients flow to the weights unless they are disabled, so that heads for dense tasks can
        be trained on them. As timm's `forward_intermediates(intermediates_only=True)`.

        Args:
            images: as for `encode`.
            blocks: numbers of blocks from 0; negative numbers count from the last.

        Returns:
            A map B D h w float32 for each number, in their order.

        Raises:
            ConfigError: for a number that is not of a block, or none.
            ShapeError: as `encode`. DataError: as `encode`.
        """
        places = [self._place(block) for block in blocks]
        if not places:
            raise ConfigError("blocks: got none, expected numbers as in (2, 5, 8, 11)")
        (h, w), images = self._prepared(images)
        tokens, maps = self.embed(images), dict[int, Tensor]()
        for place, block in enumerate(list(self.blocks)[: max(places) + 1]):
            tokens = block(tokens)
            if place in places:
                patches = tokens[:, 1:].float()
                maps[place] = patches.transpose(1, 2).unflatten(2, (h, w))
        return tuple(maps[place] for place in places)

    @property
    def embed_dim(self) -> int:
        """Width of the tokens, D: the length of a feature vector."""
        return self.config.width

    @property
    def patch_size(self) -> int:
        """Edge of a patch in pixels."""
        return self.config.patch_size

    def _place(self, block: int) -> int:
        """Return the index from 0 of a block, which may be counted from the last."""
        depth = len(self.blocks)
        if not -depth <= block < depth:
            raise ConfigError(f"block: got {block}, expected {-depth} to {depth - 1}")
        return block % depth

    def _prepared(self, images: Tensor) -> tuple[tuple[int, int], Tensor]:
        """Return the patch grid of whole images, and the images normalised."""
        require_channels_first(images, channels=self.config.channels)
        grid = patch_grid(images, patch_size=self.config.patch_size)
        if images.is_floating_point():
            require_finite(images)
        else:
            images = self.normalize(images)
        return grid, images.to(self.pos_embed.dtype)


def embed_images(
    images: Tensor,
    ids_keep: Tensor | None = None,
    *,
    config: ModelConfig,
    cls_token: Tensor | None,
    pos_embed: Tensor,
    patch_embed: PatchEmbed,
) -> Tensor:
    """Return the input of the first block: B 1+K D with the cls token first, or B K D without.

    Args:
        images: B C H W float, normalised; any size divisible by the patch size.
        ids_keep: B K int64, or None for all patches in row-major order.
        config: the network.
        cls_token: 1 1 D; None: none.
        pos_embed: 1 1+L D, resized to the grid of the images.
        patch_embed: projection of the patches.

    Raises:
        ShapeError: for a wrong channel count or a size not divisible by the patch size.
    """
    p = config.patch_size
    grid = patch_grid(images, patch_size=p)
    B, C, _, _ = images.shape
    if C != config.channels:
        raise ShapeError(
            f"channels: got {C}, expected {config.channels} as the model was trained; "
            "convert the images, or create a model with this many channels"
        )
    patches = patchify(images, patch_size=p)  # B L P
    positions = resize_positions(pos_embed, grid_from=config.grid, grid_to=grid)  # 1 1+L D
    places = positions[:, 1:]
    if ids_keep is not None:
        # Gather before the projection, so that hidden patches are not computed.
        patches, places = gather(patches, ids_keep), F.embedding(ids_keep, places[0])
    visible: Tensor = patch_embed(patches) + places  # B K D
    if cls_token is None:
        return visible
    cls = (cls_token + positions[:, :1]).expand(B, -1, -1)
    return torch.cat([cls, visible], dim=1)


def pool_tokens(tokens: Tensor, *, pool: Pool, grid: tuple[int, int]) -> Tensor:
    """Pool encoder output B 1+L D, cls first, into features (see `Encoder.encode`)."""
    patches = tokens[:, 1:]
    if pool == "mean":
        return patches.mean(dim=1)
    if pool == "cls":
        return tokens[:, 0]
    if pool == "tokens":
        return patches
    if pool == "grid":
        B, _, D = patches.shape
        plane = patches.transpose(1, 2).reshape(B, D, *grid)
        cells = F.adaptive_avg_pool2d(plane, POOL_GRID)  # B D 3 3
        return cells.flatten(2).transpose(1, 2).flatten(1)
    raise ConfigError(f"pool: got {pool!r}, expected mean, cls, grid or tokens")
