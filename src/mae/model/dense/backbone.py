"""The encoder as a backbone of dense tasks: any image size, windows, relative positions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mae.config.dense import DenseConfig
from mae.config.model import require
from mae.model.dense.relative import DecomposedPositions, TablePositions
from mae.model.dense.windows import GridWindows
from mae.model.encoder import Encoder, embed_images
from mae.model.normalize import normalize_pixels
from mae.model.transformer import drop_scales


class LayerScale(nn.Module):
    """Factors of the residual branches of a block, by channel.

    Source: Touvron et al. 2021 (CaiT); BEiT's `gamma_1` and `gamma_2`.
    """

    def __init__(self, width: int, *, init: float) -> None:
        super().__init__()
        self.attn = nn.Parameter(torch.full((width,), init))
        self.mlp = nn.Parameter(torch.full((width,), init))

    def forward(self) -> Tensor:
        """Return the factors of attention and MLP: 2 D."""
        return torch.stack([self.attn, self.mlp])


class DenseBackbone(nn.Module):
    """The parts of an encoder, run on images of any size; gives maps of patch tokens.

    It takes over the encoder's tokens, positions, projection and blocks with their names, so that
    weights fit; the last norm is left out, as published. Windows and decomposed positions have no
    place for the cls token, which is left out as well. With the default `DenseConfig` the maps
    are those of `Encoder.intermediates`.

    An image whose height or width is not a multiple of the patch size is padded with zeros at the
    bottom and the right, the mean colour of normalised images, and so are its maps.

    Source: Li et al. 2022 (ViTDet): windows and decomposed positions; Bao et al. 2022 (BEiT):
    table and LayerScale; He et al. 2021, Appendix A.3 and A.4.
    """

    def __init__(
        self, encoder: Encoder, dense: DenseConfig, *, blocks: Sequence[int], drop_path: float = 0.0
    ) -> None:
        """Take over an encoder.

        Args:
            encoder: its modules are shared, not copied.
            dense: windows, relative positions and LayerScale.
            blocks: blocks from 0 whose maps are returned.
            drop_path: drop probability of the last block, see `drop_scales`.

        Raises:
            ConfigError: for a number that is not of a block.
        """
        super().__init__()
        config = encoder.config
        depth, heads = config.depth, config.num_heads
        numbers = {*blocks, *dense.global_blocks}
        require(numbers <= {*range(depth)}, "blocks", sorted(numbers), f"0 to {depth - 1}")
        self.config, self.dense = config, dense
        self.places, self.drop_path = tuple(blocks), drop_path
        self.cls_token = encoder.cls_token if dense.has_cls else None
        self.pos_embed = encoder.pos_embed
        self.patch_embed = encoder.patch_embed
        self.blocks = encoder.blocks
        if dense.relative_positions is not None:
            makers = list[nn.Module]()
            for number in range(depth):
                grid = config.grid if (s := self._window(number)) is None else (s, s)
                makers.append(
                    TablePositions(heads, grid=grid)
                    if dense.relative_positions == "table"
                    else DecomposedPositions(config.width // heads, grid=grid)
                )
            self.relative = nn.ModuleList(makers)
        if dense.layer_scale is not None:
            init = dense.layer_scale
            self.layer_scale = nn.ModuleList(
                LayerScale(config.width, init=init) for _ in range(depth)
            )

    def forward(self, images: Tensor, *, drops: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the patch tokens after each of the blocks asked for, as maps.

        Args:
            images: B C H W float, normalised.
            drops: B 2*depth uniform in [0, 1), draws that select the branches dropped in
                training; None: none.

        Returns:
            A map B D h w for each block, with h = ceil(H / p) and w = ceil(W / p).

        Raises:
            ShapeError: for a wrong channel count.
        """
        p, (H, W) = self.config.patch_size, images.shape[-2:]
        if H % p or W % p:
            images = F.pad(images, (0, -W % p, 0, -H % p))
        grid = images.shape[-2] // p, images.shape[-1] // p
        tokens = embed_images(
            images,
            config=self.config,
            cls_token=self.cls_token,
            pos_embed=self.pos_embed,
            patch_embed=self.patch_embed,
        )
        scales = None if drops is None else drop_scales(drops, rate=self.drop_path)
        kept = self._segments(tokens, grid=grid, scales=scales)
        maps = dict(zip(sorted({*self.places}), kept, strict=True))
        first = 0 if self.cls_token is None else 1
        B, _, D = tokens.shape
        return tuple(maps[i][:, first:].transpose(1, 2).reshape(B, D, *grid) for i in self.places)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise stored pixel values B C H W for the network, on their own device."""
        return normalize_pixels(images, self.config.pixels)

    def _window(self, number: int) -> int | None:
        """Return the window of a block, None for global attention."""
        return None if number in self.dense.global_blocks else self.dense.window

    def _segments(
        self, tokens: Tensor, *, grid: tuple[int, int], scales: Tensor | None
    ) -> list[Tensor]:
        """Apply all blocks, with activation checkpointing if asked; return the tokens wanted."""
        run = partial(self._run, grid=grid, scales=scales)
        depth, every = len(self.blocks), self.blocks.checkpoint_every
        if every is None or not (self.training and torch.is_grad_enabled()):
            return run(tokens, 0, depth)[1]
        kept: list[Tensor] = []
        for start in range(0, depth, every):
            # Blocks draw no random numbers, so no generator state has to be preserved.
            tokens, found = checkpoint(
                run, tokens, start, min(start + every, depth),
                use_reentrant=False, preserve_rng_state=False,
            )  # fmt: skip
            kept += found
        return kept

    def _run(
        self,
        tokens: Tensor,
        start: int,
        stop: int,
        *,
        grid: tuple[int, int],
        scales: Tensor | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Apply some blocks; return the tokens after the last, and those wanted."""
        kept: list[Tensor] = []
        for number in range(start, stop):
            size, bias, factors = self._window(number), None, None
            windows = None if size is None else GridWindows(grid, size)
            if self.dense.relative_positions is not None:
                attended = grid if size is None else (size, size)
                bias = partial(self.relative[number], grid=attended)
            if scales is not None:
                factors = scales[:, 2 * number : 2 * number + 2, None]
            if self.dense.layer_scale is not None:
                own = self.layer_scale[number]()
                factors = own[None] if factors is None else factors * own
            tokens = self.blocks[number](tokens, scales=factors, bias=bias, windows=windows)
            if number in self.places:
                kept.append(tokens)
        return tokens, kept
