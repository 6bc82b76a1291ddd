"""Crops of JPEGs equal Pillow's, and a scaled decode is what it says."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mae.config.run import AugmentConfig
from mae.data.augment.crop import CROP_DRAWS, crop_boxes
from mae.data.augment.decode_and_crop import crop_scale, random_crops
from mae.data.decoding.decode import BadImage, PixelKind, decode, jpeg_head
from tests.images import encoded, image, photo, rotated_jpeg

RGB = PixelKind("uint8", 3)
SIZE = (96, 112)
PLAIN, SCALED = AugmentConfig(), AugmentConfig(scaled_decode=True)


def draws(count: int, *, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((count, CROP_DRAWS)).astype(np.float32)


def boxes_of(given: NDArray[np.float32], height: int, width: int) -> NDArray[np.int64]:
    sides = np.full(len(given), height), np.full(len(given), width)
    return crop_boxes(*sides, given, PLAIN)


def crops(data: bytes, given: NDArray[np.float32], augment: AugmentConfig) -> NDArray[np.uint8]:
    flips = np.zeros(len(given), dtype=bool)
    return np.stack(random_crops(data, given, flips, kind=RGB, size=SIZE, augment=augment))


def pillow(data: bytes, box: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Cut and resize as torchvision's published transforms do."""
    top, left, height, width = box.tolist()
    with Image.open(io.BytesIO(data)) as opened:
        sample = ImageOps.exif_transpose(opened).convert("RGB")
    cut = sample.crop((left, top, left + width, top + height))
    return np.asarray(cut.resize(SIZE[::-1], Image.Resampling.BICUBIC))


def psnr(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    error = np.square(first.astype(np.float64) - second.astype(np.float64)).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def smooth(height: int, width: int, *, seed: int) -> Image.Image:
    """Draw an image of soft shapes and little noise, as photographs of many pixels are."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 24, width // 24, 3)).astype(np.uint8)
    soft = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.asarray(soft) + rng.normal(0, 2, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    "shape", [(375, 500), (500, 333), (120, 160), (97, 1200), (60, 50), (300, 301)]
)
def test_crops_of_a_jpeg_equal_pillows_to_60_db(shape: tuple[int, int]) -> None:
    data = encoded(image(*shape, seed=shape[0]), "JPEG", quality=90)
    given = draws(15)

    found = [
        psnr(crop, pillow(data, box))
        for crop, box in zip(crops(data, given, PLAIN), boxes_of(given, *shape), strict=True)
    ]

    assert np.median(found) > 60


def test_a_mirrored_crop_is_the_crop_mirrored() -> None:
    data, given = encoded(image(61, 83), "JPEG"), draws(3)
    flips = np.array([True, False, True])

    found = random_crops(data, given, flips, kind=RGB, size=SIZE, augment=PLAIN)

    for crop, flip, upright in zip(found, flips, crops(data, given, PLAIN), strict=True):
        assert np.array_equal(crop, upright[:, ::-1] if flip else upright)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_scaled_decode_shows_the_same_part_to_36_db(orientation: int) -> None:
    data, given = rotated_jpeg(smooth(600, 900, seed=3), orientation), draws(6)
    height, width = (900, 600) if orientation > 4 else (600, 900)
    assert jpeg_head(data) == (height, width, orientation > 1)

    for line in given:
        box = boxes_of(line[None], height, width)
        shrink = crop_scale(box, size=SIZE, divided=(height, width))
        snapped = box[0] // shrink * shrink

        (crop,) = crops(data, line[None], SCALED)

        assert shrink >= 2
        assert psnr(crop, pillow(data, snapped)) > 36


def test_small_crops_are_decoded_in_full_and_the_same_bits() -> None:
    data, given = encoded(photo_image(150, 190), "JPEG"), draws(9)

    assert np.array_equal(crops(data, given, SCALED), crops(data, given, PLAIN))


def photo_image(height: int, width: int) -> Image.Image:
    return Image.fromarray(photo(height, width, seed=1))


@pytest.mark.parametrize(
    ("sides", "scale"),
    [((191, 500), 1), ((192, 223), 1), ((192, 224), 2), ((400, 448), 4), ((9000, 9000), 8)],
)
def test_no_crop_has_to_be_enlarged_for_a_scaled_decode(sides: tuple[int, int], scale: int) -> None:
    assert crop_scale(np.array([[5, 7, *sides]]), size=SIZE) == scale


def test_a_turned_image_is_only_shrunk_to_whole_pixels() -> None:
    box = np.array([[0, 0, 900, 900]])

    assert crop_scale(box, size=SIZE) == 8
    assert crop_scale(box, size=SIZE, divided=(908, 1304)) == 4
    assert crop_scale(box, size=SIZE, divided=(901, 1304)) == 1


def test_the_smallest_of_several_views_decides_the_scale() -> None:
    boxes = np.array([[0, 0, 900, 900], [0, 0, 200, 300]])

    assert crop_scale(boxes, size=SIZE) == 2


def test_what_cannot_be_decoded_at_a_scale_is_decoded_whole() -> None:
    given = draws(4)
    for data in (
        encoded(smooth(360, 480, seed=1).convert("CMYK"), "JPEG"),
        encoded(smooth(360, 480, seed=1), "PNG"),
    ):
        assert np.array_equal(crops(data, given, SCALED), crops(data, given, PLAIN))


@pytest.mark.parametrize("shrink", [2, 4, 8])
def test_a_jpeg_is_shrunk_to_whole_pixels_rounded_up(shrink: int) -> None:
    data = encoded(smooth(301, 419, seed=2), "JPEG", quality=95)

    pixels = decode(data, kind=RGB, shrink=shrink)

    assert pixels.shape == (-(-301 // shrink), -(-419 // shrink), 3)


def test_a_damaged_large_jpeg_is_refused_at_any_scale() -> None:
    data = encoded(smooth(600, 900, seed=3), "JPEG")[:-900]

    with pytest.raises(BadImage, match="JPEG that cannot be decoded"):
        crops(data, draws(1), SCALED)


@pytest.mark.parametrize("marker", [b"\xff\xe1", b"\xff\xfe"])
def test_segments_before_the_frame_change_no_pixel(marker: bytes) -> None:
    data = encoded(image(61, 83), "JPEG", quality=90)
    padding = marker + (2 + 50).to_bytes(2, "big") + b"x" * 50

    longer = data[:2] + padding + data[2:]

    assert np.array_equal(decode(longer, kind=RGB), decode(data, kind=RGB))
