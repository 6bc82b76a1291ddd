"""Distorted colours against values worked out by hand and by colorsys."""

from __future__ import annotations

import colorsys

import numpy as np

from mae.data.augment.distort import DISTORT_DRAWS, distorted

NOTHING = [0.9] * DISTORT_DRAWS
COLOURS = np.array([[[200, 40, 60], [10, 120, 250], [90, 90, 90]]], dtype=np.uint8)


def drawn(**values: float) -> list[float]:
    """Give draws that change nothing but those named by their place, as in p3."""
    return [values.get(f"p{place}", draw) for place, draw in enumerate(NOTHING)]


def test_half_of_the_draws_change_nothing() -> None:
    assert np.array_equal(distorted(COLOURS, NOTHING), COLOURS)


def test_brightness_and_contrast_are_clipped() -> None:
    brighter = distorted(COLOURS, drawn(p0=0, p1=0.75))  # + 16
    stronger = distorted(COLOURS, drawn(p2=0, p3=1 - 2**-24))  # times 1.5

    assert brighter.tolist() == [[[216, 56, 76], [26, 136, 255], [106, 106, 106]]]
    assert stronger.tolist() == [[[255, 60, 90], [15, 180, 255], [135, 135, 135]]]


def test_hue_and_saturation_are_those_of_colorsys() -> None:
    found = distorted(COLOURS, drawn(p4=0, p5=0.25, p6=0, p7=1.0))  # 0.75 of it, by 36 degrees

    for before, after in zip(COLOURS[0] / 255, found[0] / 255, strict=True):
        h, s, v = colorsys.rgb_to_hsv(*before)
        expected = colorsys.hsv_to_rgb((h + 0.1) % 1, 0.75 * s, v)
        assert np.abs(np.array(expected) - after).max() < 0.03  # 256 hues
