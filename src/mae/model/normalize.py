"""Normalize stored pixel values for the network, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mae.config.model import PixelConfig
from mae.errors import DataError, ShapeError


def normalize_pixels(images: Tensor, pixels: PixelConfig) -> Tensor:
    """Scale stored values to [0, 1] by their range, then normalise by mean and std per channel.

    Args:
        images: B C H W of the stored type (uint8, uint16 or float32).
        pixels: range, mean and std.

    Returns:
        B C H W float32 on the same device.

    Raises:
        ShapeError: if type or channel count differ from those the model was trained on.
    """
    stored = str(images.dtype).removeprefix("torch.")
    if stored != pixels.dtype or images.shape[1] != len(pixels.mean):
        raise ShapeError(
            f"images: got {images.shape[1]} channels of {stored}, expected {len(pixels.mean)} "
            f"of {pixels.dtype} as the model was trained; convert the images first"
        )
    scale = [1 / (pixels.full_range * s) for s in pixels.std]
    shift = [-m / s for m, s in zip(pixels.mean, pixels.std, strict=True)]
    images = images.float()
    if not images.is_contiguous(memory_format=torch.channels_last):
        return images * _per_channel(scale, images) + _per_channel(shift, images)
    # Rows of W C values, the same bits: along a few channels alone a CPU takes three times as long.
    B, C, H, W = images.shape
    rows = images.permute(0, 2, 3, 1).reshape(B, H, W * C)
    factor, summand = (_per_channel(each, images).flatten().repeat(W) for each in (scale, shift))
    rows = rows * factor + summand
    return rows.view(B, H, W, C).permute(0, 3, 1, 2)


def require_finite(images: Tensor) -> None:
    """Raise if float images contain NaN or infinity, which would spread to every feature.

    Raises:
        DataError: for any non-finite value.
    """
    if not bool(images.isfinite().all()):
        raise DataError("images: got NaN or infinite pixels, expected finite; clean them")


def denormalize_pixels(images: Tensor, pixels: PixelConfig) -> Tensor:
    """Undo mean and std: B C H W normalised float to [0, 1] of the stored range."""
    return images * _per_channel(pixels.std, images) + _per_channel(pixels.mean, images)


def _per_channel(values: Sequence[float], images: Tensor) -> Tensor:
    return torch.tensor(values, dtype=images.dtype, device=images.device).view(1, -1, 1, 1)
