"""Relative positions: what dense tasks add to the attention logits, zero at the start."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DecomposedPositions(nn.Module):
    """Logits by the offset in rows and the offset in columns, each a product with the query.

    Source: Li et al. 2022 (ViTDet) after MViTv2; names and shapes of the published code's
    `rel_pos_h` and `rel_pos_w`.
    """

    def __init__(self, head_width: int, *, grid: tuple[int, int]) -> None:
        """Create tables of zeros, 2h-1 d and 2w-1 d, for a grid or window (h, w)."""
        super().__init__()
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid[0] - 1, head_width))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid[1] - 1, head_width))

    def forward(self, q: Tensor, *, grid: tuple[int, int]) -> Tensor:
        """Return the bias of a grid of any size: queries B heads h*w d to B heads h*w h*w.

        The queries are those before scaling. Tables of another size are resized linearly.
        """
        h, w = grid
        B, heads, L, d = q.shape
        plane = q.reshape(B, heads, h, w, d)
        rows = torch.einsum("bnhwd,hkd->bnhwk", plane, _by_offset(self.rel_pos_h, h))
        columns = torch.einsum("bnhwd,wkd->bnhwk", plane, _by_offset(self.rel_pos_w, w))
        return (rows[..., :, None] + columns[..., None, :]).reshape(B, heads, L, L)


def _by_offset(table: Tensor, size: int) -> Tensor:
    """Return the entry of each query and key along an axis: size size d."""
    if len(table) != 2 * size - 1:
        table = resized_offsets(table, 2 * size - 1)
    places = torch.arange(size, device=table.device)
    return table[places[:, None] - places[None, :] + size - 1]


def resized_offsets(table: Tensor, count: int) -> Tensor:
    """Resize a table of offsets along an axis, n d, linearly to `count` d."""
    return F.interpolate(table.t()[None], size=count, mode="linear")[0].t()


class TablePositions(nn.Module):
    """A logit of each head for each offset between two patches, and three for the cls token.

    Source: Bao et al. 2022 (BEiT); order of its published `relative_position_bias_table`: offsets
    in rows and columns, row-major, then cls to patch, patch to cls, cls to cls.
    """

    def __init__(self, num_heads: int, *, grid: tuple[int, int]) -> None:
        """Create a table of zeros, (2h-1)(2w-1)+3 heads, for a grid (h, w)."""
        super().__init__()
        self.grid = grid
        h, w = grid
        self.table = nn.Parameter(torch.zeros((2 * h - 1) * (2 * w - 1) + 3, num_heads))

    def forward(self, q: Tensor, *, grid: tuple[int, int]) -> Tensor:
        """Return the bias, 1 heads 1+h*w 1+h*w with cls first, of a grid of any size.

        The table of another grid is resized bilinearly, as in transformers.
        """
        h, w = grid
        table = self.table if grid == self.grid else self._resized(grid)
        index = _table_index(h, w, device=table.device)
        # By head, so that the result is contiguous.
        bias = table.t().contiguous().index_select(1, index.flatten())
        return bias.reshape(1, -1, 1 + h * w, 1 + h * w)

    def _resized(self, grid: tuple[int, int]) -> Tensor:
        (h, w), size = self.grid, (2 * grid[0] - 1, 2 * grid[1] - 1)
        plane = self.table[:-3].reshape(1, 2 * h - 1, 2 * w - 1, -1).permute(0, 3, 1, 2)
        plane = F.interpolate(plane, size=size, mode="bilinear")
        return torch.cat([plane.permute(0, 2, 3, 1).flatten(0, 2), self.table[-3:]])


def _table_index(h: int, w: int, *, device: torch.device) -> Tensor:
    """Return the row of the table for each query and key: 1+h*w 1+h*w int32."""
    rows = torch.arange(h, dtype=torch.int32, device=device).repeat_interleave(w)
    columns = torch.arange(w, dtype=torch.int32, device=device).repeat(h)
    offsets = (rows[:, None] - rows + h - 1) * (2 * w - 1) + columns[:, None] - columns + w - 1
    index = F.pad(offsets, (1, 0, 1, 0))
    last = (2 * h - 1) * (2 * w - 1)
    index[0, :], index[:, 0] = last, last + 1
    index[0, 0] = last + 2
    return index
