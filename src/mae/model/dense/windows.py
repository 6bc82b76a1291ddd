"""Window attention: the patch grid cut into squares that attend within themselves."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class GridWindows(NamedTuple):
    """Square windows of a patch grid, padded at the bottom and the right with zero tokens.

    The pads take part in attention as tokens and are cut off after it. A block splits its tokens
    after the norm, so that the pads are zeros there (and not the bias of the norm).

    Source: Li et al. 2022 (ViTDet), and its published code.
    """

    grid: tuple[int, int]
    """Patches along height and width, (h, w)."""
    size: int
    """Edge of a window in patches, s."""

    @property
    def padded(self) -> tuple[int, int]:
        """Patches along height and width with the pads: multiples of the window."""
        h, w = self.grid
        return h + -h % self.size, w + -w % self.size

    def split(self, tokens: Tensor) -> Tensor:
        """Divide B h*w D into windows, row-major in each image: B*windows s*s D."""
        (h, w), (H, W), s = self.grid, self.padded, self.size
        B, _, D = tokens.shape
        plane = F.pad(tokens.reshape(B, h, w, D), (0, 0, 0, W - w, 0, H - h))
        tiles = plane.reshape(B, H // s, s, W // s, s, D).transpose(2, 3)
        return tiles.reshape(-1, s * s, D)

    def join(self, tokens: Tensor) -> Tensor:
        """Put windows together again without their pads: the inverse of `split`."""
        (h, w), (H, W), s = self.grid, self.padded, self.size
        D = tokens.shape[-1]
        tiles = tokens.reshape(-1, H // s, W // s, s, s, D).transpose(2, 3)
        return tiles.reshape(-1, H, W, D)[:, :h, :w].reshape(-1, h * w, D)
