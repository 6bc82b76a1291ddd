"""Draw brightness, contrast, saturation and hue of a colour image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from mae.data.types import Pixels

DISTORT_DRAWS = 9
"""Uniform draws of an image: whether and how much for each of the four, and their order."""
_BRIGHTNESS, _HUE = 32.0, 36.0  # of 255, in degrees
_FACTORS = 0.5, 1.5


def distorted(image: Pixels, draws: Sequence[float]) -> Pixels:
    """Change each of brightness, contrast, saturation and hue with probability 1/2.

    Brightness is shifted by up to 32 of 255, contrast and saturation are multiplied by 0.5 to 1.5,
    the hue is turned by up to 36 degrees; values are clipped and rounded after each. Contrast comes
    before or after saturation and hue, either as likely.

    Args:
        image: H W 3 uint8.
        draws: DISTORT_DRAWS, in [0, 1).

    Source: SSD (Liu et al. 2016); mmsegmentation's PhotoMetricDistortion.
    """
    low, high = _FACTORS
    values = image.astype(np.float32)
    if draws[0] < 0.5:
        values = _clipped(values + (2 * draws[1] - 1) * _BRIGHTNESS)
    contrast = low + draws[3] * (high - low) if draws[2] < 0.5 else 1.0
    if draws[8] < 0.5:
        values = _clipped(values * contrast)
    if draws[4] < 0.5 or draws[6] < 0.5:
        saturation = low + draws[5] * (high - low) if draws[4] < 0.5 else 1.0
        turn = (2 * draws[7] - 1) * _HUE if draws[6] < 0.5 else 0.0
        values = _in_hsv(values, saturation=saturation, turn=turn)
    if draws[8] >= 0.5:
        values = _clipped(values * contrast)
    return values.astype(np.uint8)


def _clipped(values: Pixels) -> Pixels:
    rounded: Pixels = np.rint(values).clip(0, 255)
    return rounded


def _in_hsv(values: Pixels, *, saturation: float, turn: float) -> Pixels:
    """Multiply the saturation and turn the hue by degrees."""
    colours = np.asarray(Image.fromarray(values.astype(np.uint8)).convert("HSV")).astype(np.float32)
    colours[..., 0] = np.rint(colours[..., 0] + turn * 256 / 360) % 256
    colours[..., 1] = _clipped(colours[..., 1] * saturation)
    back = Image.fromarray(colours.astype(np.uint8), mode="HSV").convert("RGB")
    return np.asarray(back).astype(np.float32)
