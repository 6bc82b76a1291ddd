"""Mask noise, the only randomness of masking: one number a patch, of which the smallest stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae.config.model import ModelConfig
from mae.config.objective import ObjectiveConfig
from mae.data.decoding.decode import BadImage, PixelKind, decode
from mae.data.sampling.draws import Stream, uniform
from mae.data.types import Draws, Integers, Size
from mae.errors import DataError

Draw = Callable[[int], Draws]
"""Draws so many numbers in [0, 1) for each image of a batch."""


def mask_noise(
    ids: Integers, objective: ObjectiveConfig, *, grid: Size, seed: int, epoch: int = 0
) -> Tensor:
    """Draw the noise by which a model hides patches, keyed by (seed, epoch, sample id).

    Args:
        ids: B sample ids.
        objective: its kind of mask; the number of hidden patches is left to the model.
        grid: patches along height and width, h and w.
        seed: key of the run.
        epoch: pass over the data; each has its own masks.

    Returns:
        B L float32 in [0, 1), L = h w.
    """

    def draw(count: int) -> Draws:
        return uniform(seed, epoch, ids, stream=Stream.MASK, count=count)

    match objective.mask_kind:
        case "random":
            noise = draw(grid[0] * grid[1])
        case "block":
            noise = _block_noise(draw, grid, edge=objective.mask_block)
        case "grid":
            noise = _grid_noise(draw, grid)
    return torch.from_numpy(noise)


def _block_noise(draw: Draw, grid: Size, *, edge: int) -> Draws:
    """Order patches by cells of `edge` x `edge`, in random order, and at random inside each.

    Cells are aligned with the top left corner; those at the other edges may be smaller. Where the
    number of visible patches ends inside a cell, a random part of it is visible.
    """
    rows, columns = np.indices(grid) // edge
    cell = (rows * -(-grid[1] // edge) + columns).ravel()  # L
    count = int(cell.max()) + 1
    noise = draw(len(cell) + count)
    rank = noise[:, len(cell) :].argsort(axis=1, kind="stable").argsort(axis=1)
    # Half of the noise, so that rounding never takes a patch into the next cell.
    return (rank[:, cell] + noise[:, : len(cell)] / 2).astype(np.float32) / np.float32(count)


def _grid_noise(draw: Draw, grid: Size) -> Draws:
    """Put one patch of each 2 x 2 before the rest, at a place that is drawn for each image.

    Source: He et al. 2021, Figure 6 and Table 1f ("grid": regularly keeps one of every four).
    """
    rows, columns = np.indices(grid) % 2
    place = (2 * rows + columns).ravel()  # L
    noise = draw(len(place) + 1)
    hidden = place != np.floor(4 * noise[:, -1:])  # B L
    order: NDArray[np.float64] = noise[:, :-1] + 2 * hidden
    return order.astype(np.float32) / np.float32(4)


def read_mask(path: Path, config: ModelConfig) -> Tensor:
    """Read a mask from an image file: white patches are hidden, black ones visible.

    Args:
        path: an image with a pixel for each patch, or of the size of the network's images, where a
            patch is hidden if more than half of it is white.
        config: the network.

    Returns:
        h w bool, True where hidden.

    Raises:
        DataError: if it cannot be read, is of another size, or hides all or none of the patches.
    """
    try:
        pixels = decode(path.read_bytes(), kind=PixelKind("uint8", 1))[..., 0]
    except (OSError, BadImage) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"mask: {path}: cannot be read: {reason}") from error
    (h, w), (H, W) = config.grid, config.image_size
    rows, columns = pixels.shape
    if (rows, columns) not in ((h, w), (H, W)):
        raise DataError(
            f"mask: {path}: is {rows} x {columns} pixels, expected {h} x {w}, the patches, or "
            f"{H} x {W}, the images of the model"
        )
    cells = pixels.reshape(h, rows // h, w, columns // w)
    hidden = torch.from_numpy(cells.mean(axis=(1, 3)) > 127.5)
    count = int(hidden.sum())
    if not 0 < count < h * w:
        raise DataError(
            f"mask: {path}: hides {count} of {h * w} patches, expected some hidden (white) and "
            "some visible (black)"
        )
    return hidden
