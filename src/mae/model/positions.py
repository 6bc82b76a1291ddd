"""Sine-cosine position tables for patch grids of any shape, and their resizing.

As in the published code, the first half of the width encodes the column, the second the row.
Other libraries swap the halves, so the table is stored with the weights and loaded from them; it
is computed only for a new model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_positions(width: int, grid: tuple[int, int]) -> Tensor:
    """Compute the position table of an h x w grid, starting with a zero row for cls.

    Args:
        width: token width D, a multiple of 4.
        grid: patches along height and width, (h, w).

    Returns:
        1 1+L D float32, computed in float64: sin and cos of the column, then of the row.

    Source: He et al. 2021, Appendix A.1; layout of the published table (golden test).
    """
    h, w = grid
    rows = torch.arange(h, dtype=torch.float64).repeat_interleave(w)  # L
    columns = torch.arange(w, dtype=torch.float64).repeat(h)  # L
    table = torch.cat([_sincos(columns, width // 2), _sincos(rows, width // 2)], dim=1)  # L D
    return torch.cat([table.new_zeros(1, width), table]).unsqueeze(0).float()


def _sincos(places: Tensor, width: int) -> Tensor:
    exponents = torch.arange(width // 2, dtype=torch.float64) / (width / 2)
    angles = places[:, None] * 10000.0**-exponents  # L width/2
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def resize_positions(
    table: Tensor, *, grid_from: tuple[int, int], grid_to: tuple[int, int]
) -> Tensor:
    """Resize the patch part of a table bicubically in two dimensions; the cls row stays.

    Args:
        table: 1 1+L D, cls row first.
        grid_from: grid of the table.
        grid_to: target grid; the same grid returns the table unchanged.

    Source: published code, util/pos_embed.py (golden test).
    """
    # A symbolic grid of an exported graph is not compared: the comparison would specialise it.
    # Resizing a table to its own size returns it bit for bit.
    if isinstance(grid_to[0], int) and grid_from == grid_to:
        return table
    (h, w), D = grid_from, table.shape[-1]
    plane = table[:, 1:].reshape(1, h, w, D).permute(0, 3, 1, 2)  # 1 D h w
    plane = F.interpolate(plane, size=grid_to, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], plane.permute(0, 2, 3, 1).reshape(1, -1, D)], dim=1)
