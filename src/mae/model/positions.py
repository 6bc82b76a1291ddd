"""Sine-cosine positions of a patch grid of any shape.

Column first, as published: the first half of the width encodes the column, the second the row.
Other libraries carry tables with the halves swapped, so a table is stored with the weights and
loaded, and computed only for a new model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_positions(width: int, grid: tuple[int, int]) -> Tensor:
    """Compute the position table of an h x w grid, with a zero row for cls first.

    Args:
        width: token width D, a multiple of 4.
        grid: patches along height and width, (h, w).

    Returns:
        1 1+L D float32, computed in float64: sin and cos of the column, then of the row.

    Source: paper, Appendix A.1; layout of the published table (golden test).
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
        grid_from: grid the table was made for.
        grid_to: grid wanted; the same grid gives the table back untouched.

    Source: the published interpolation (golden test).
    """
    # A grid that is a variable of an exported graph is not compared, which would fix it: resized
    # to its own size a table is what it was, bit for bit.
    if isinstance(grid_to[0], int) and grid_from == grid_to:
        return table
    (h, w), D = grid_from, table.shape[-1]
    plane = table[:, 1:].reshape(1, h, w, D).permute(0, 3, 1, 2)  # 1 D h w
    plane = F.interpolate(plane, size=grid_to, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], plane.permute(0, 2, 3, 1).reshape(1, -1, D)], dim=1)
