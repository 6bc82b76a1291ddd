"""Crops are torchvision's, resized as Pillow does, on both paths."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from mae.config.run import AugmentConfig
from mae.data.augment.batched_crop import Taps, bicubic_taps, resized_crops
from mae.data.augment.crop import (
    CROP_DRAWS,
    central_pixels_box,
    crop_boxes,
    random_box,
    resized_crop,
)
from tests.images import photo

SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)
AUGMENT = AugmentConfig(crop_scale=SCALE, crop_ratio=RATIO)


def pillow(image: NDArray[np.generic], box, size: tuple[int, int]) -> NDArray[np.generic]:
    """Crop, then resize with Pillow, horizontal pass first.

    The passes are called one by one: since 13.0 Pillow takes the vertical one first where that is
    cheaper, which clips other values at hard edges.
    """
    top, left, height, width = map(int, box)
    crop = image[top : top + height, left : left + width]
    planes = []
    for channel in range(crop.shape[2]):
        plane = Image.fromarray(np.ascontiguousarray(crop[..., channel]))
        for step in ((size[1], height), (size[1], size[0])):
            plane = plane.resize(step, Image.Resampling.BICUBIC)
        planes.append(np.asarray(plane))
    return np.stack(planes, axis=-1)


def psnr(first: NDArray[np.generic], second: NDArray[np.generic], peak: float = 255.0) -> float:
    error = np.square(first.astype(np.float64) - second.astype(np.float64)).mean()
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)


def drawn_box(rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
    return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w


def hard_edges(height: int, width: int, *, channels: int, seed: int) -> NDArray[np.uint8]:
    """Black and white noise, where every overshoot is clipped."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2, (height, width, channels)).astype(np.uint8) * 255


@pytest.mark.parametrize("draw", [photo, hard_edges])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_every_crop_equals_pillow_to_50_db(draw, channels):
    rng = np.random.default_rng(channels)
    for seed in range(40):
        height, width = (int(v) for v in rng.integers(1, 300, 2))
        image = draw(height, width, channels=channels, seed=seed)
        size = (224, 224) if seed % 3 == 0 else tuple(int(v) for v in rng.integers(1, 120, 2))
        box = drawn_box(rng, height, width)

        resized = resized_crop(image, box, size=size)

        assert resized.shape == (*size, channels) and resized.dtype == np.uint8
        assert resized.flags.c_contiguous
        assert psnr(resized, pillow(image, box, size)) >= 50, (image.shape, box, size)


def test_a_photograph_equals_one_call_of_pillow_to_50_db():
    rng = np.random.default_rng(0)
    for seed in range(40):
        image = photo(120 + seed, 170 - seed, seed=seed)
        top, left, height, width = box = drawn_box(rng, *image.shape[:2])

        resized = resized_crop(image, box, size=(96, 64))

        cut = Image.fromarray(image).crop((left, top, left + width, top + height))
        assert psnr(resized, np.asarray(cut.resize((64, 96), Image.Resampling.BICUBIC))) >= 50


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_float_crops_equal_pillow(channels):
    image = photo(61, 83, channels=channels).astype(np.float32) / 255

    resized = resized_crop(image, (7, 3, 40, 71), size=(24, 36))

    assert resized.dtype == np.float32
    assert np.abs(resized - pillow(image, (7, 3, 40, 71), (24, 36))).max() < 1e-5


def test_16_bit_crops_keep_their_range():
    steps = (photo(61, 83, channels=1) > 128).astype(np.uint16) * 65535

    resized = resized_crop(steps, (0, 0, 61, 83), size=(90, 120))

    exact = pillow(steps.astype(np.float32), (0, 0, 61, 83), (90, 120))
    assert resized.dtype == np.uint16
    assert np.abs(resized - exact.clip(0, 65535)).max() <= 1


def test_nothing_outside_the_box_is_seen():
    image = photo(40, 50)
    spoiled = np.full_like(image, 255)
    spoiled[7:31, 5:38] = image[7:31, 5:38]

    for size in ((12, 15), (48, 60)):
        kept = resized_crop(image, (7, 5, 24, 33), size=size)
        assert np.array_equal(kept, resized_crop(spoiled, (7, 5, 24, 33), size=size))


def test_a_crop_of_the_right_size_is_an_exact_copy():
    image = photo(40, 50)

    crop = resized_crop(image, (7, 5, 24, 33), size=(24, 33))

    assert np.array_equal(crop, image[7:31, 5:38])
    assert not np.shares_memory(crop, image)


def test_read_only_and_backward_memory_can_be_cropped():
    image = photo(40, 50)
    expected = resized_crop(image, (0, 0, 40, 50), size=(24, 36))
    frozen, fortran = image.copy(), np.asfortranarray(image)
    frozen.flags.writeable = False

    backward = resized_crop(image[:, ::-1], (0, 0, 40, 50), size=(24, 36))

    assert np.array_equal(resized_crop(frozen, (0, 0, 40, 50), size=(24, 36)), expected)
    assert np.array_equal(resized_crop(fortran, (0, 0, 40, 50), size=(24, 36)), expected)
    assert psnr(backward[:, ::-1], expected) >= 50


def batch(number: int, height: int, width: int, channels: int) -> NDArray[np.uint8]:
    drawn = [photo(height, width, channels=channels, seed=s) for s in range(number - 3)]
    drawn += [hard_edges(height, width, channels=channels, seed=s) for s in range(3)]
    return np.stack(drawn)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((28, 28, 1), (28, 28)),
        ((32, 32, 3), (32, 32)),
        ((37, 23, 3), (16, 40)),
        ((9, 50, 2), (30, 8)),
    ],
)
def test_batched_crops_equal_pillow_to_50_db(shape, size):
    images = batch(40, *shape)
    rng = np.random.default_rng(0)
    boxes = np.array([drawn_box(rng, *shape[:2]) for _ in images])
    boxes[0] = 0, 0, *shape[:2]
    boxes[1] = shape[0] - 1, shape[1] - 1, 1, 1
    flips = rng.random(len(images)) < 0.5

    crops = resized_crops(images, boxes, size=size, flips=flips)

    assert crops.shape == (40, *size, shape[2]) and crops.dtype == np.uint8
    assert crops.flags.c_contiguous
    for image, box, flip, crop in zip(images, boxes, flips, crops, strict=True):
        upright = crop[:, ::-1] if flip else crop
        assert psnr(upright, pillow(image, box, size)) >= 50, box


def test_batched_crops_equal_single_ones_to_50_db():
    images = batch(20, 32, 24, 3)
    rng = np.random.default_rng(1)
    boxes = np.array([drawn_box(rng, 32, 24) for _ in images])

    crops = resized_crops(images, boxes, size=(32, 24), flips=np.zeros(20, dtype=bool))

    for image, box, crop in zip(images, boxes, crops, strict=True):
        assert psnr(crop, resized_crop(image, box, size=(32, 24))) >= 50


def dense(taps: Taps, *, stored: int) -> NDArray[np.float64]:
    """Spread taps over whole lines, B wanted stored."""
    lines = torch.zeros(*taps.places.shape[:2], stored, dtype=torch.float64)
    return lines.scatter_add_(2, taps.places, taps.weights.double()).numpy()


def test_batched_crops_equal_integer_arithmetic_bit_for_bit():
    images = batch(12, 19, 31, 3)
    rng = np.random.default_rng(2)
    boxes = np.array([drawn_box(rng, 19, 31) for _ in images])

    crops = resized_crops(images, boxes, size=(16, 24), flips=np.zeros(12, dtype=bool))

    columns = dense(bicubic_taps(boxes[:, 1], boxes[:, 3], wanted=24), stored=31)
    rows = dense(bicubic_taps(boxes[:, 0], boxes[:, 2], wanted=16), stored=19)
    values = images.astype(np.int64)
    for weights, axes in ((columns, "bjw,bhwc->bhjc"), (rows, "bih,bhjc->bijc")):
        units = np.rint(weights * 2**15).astype(np.int64)
        values = ((np.einsum(axes, units, values) + 2**14) >> 15).clip(0, 255)
    assert np.array_equal(crops, values)


def test_batched_crops_do_not_depend_on_threads_or_neighbours():
    images = batch(60, 32, 32, 3)
    rng = np.random.default_rng(3)
    boxes = np.array([drawn_box(rng, 32, 32) for _ in images])
    flips = rng.random(60) < 0.5
    threads = torch.get_num_threads()

    together = resized_crops(images, boxes, size=(32, 32), flips=flips)
    torch.set_num_threads(2 if threads == 1 else 1)
    try:
        again = resized_crops(images, boxes, size=(32, 32), flips=flips)
    finally:
        torch.set_num_threads(threads)
    alone = [
        resized_crops(images[i : i + 1], boxes[i : i + 1], size=(32, 32), flips=flips[i : i + 1])
        for i in range(60)
    ]

    assert np.array_equal(together, again)
    assert np.array_equal(together, np.concatenate(alone))


def test_weights_are_multiples_of_2_to_the_minus_15_that_sum_to_one():
    rng = np.random.default_rng(4)
    lengths = rng.integers(1, 61, 500)
    starts = rng.integers(0, 61 - lengths)

    for wanted in (1, 7, 60, 224):
        weights = dense(bicubic_taps(starts, lengths, wanted=wanted), stored=60)

        assert np.array_equal(weights * 2**15, np.rint(weights * 2**15))
        assert (weights.sum(axis=-1) == 1).all()
        # 255 times this stays below 2^9: 24 bits of float32 hold 9 before and 15 after the point.
        assert np.abs(weights).sum(axis=-1).max() <= 2
        inside = (np.arange(60) >= starts[:, None]) & (np.arange(60) < (starts + lengths)[:, None])
        assert not weights[np.broadcast_to(~inside[:, None], weights.shape)].any()


def test_a_whole_image_at_its_own_size_is_only_mirrored():
    images = batch(6, 19, 31, 3)
    whole = np.tile([0, 0, 19, 31], (6, 1))
    flips = np.array([True, False, True, False, False, True])

    only_flips = resized_crops(images, whole, size=(19, 31), flips=flips)
    boxes = whole.copy()
    boxes[3] = 2, 3, 10, 20
    through_products = resized_crops(images, boxes, size=(19, 31), flips=flips)

    expected = np.where(flips[:, None, None, None], images[:, :, ::-1], images)
    assert np.array_equal(only_flips, expected)
    others = [0, 1, 2, 4, 5]
    assert np.array_equal(through_products[others], expected[others])
    assert not np.shares_memory(only_flips, images)


def torchvision_box(height, width, draws, scale, ratio):
    """RandomResizedCrop.get_params of torchvision, its draws given instead of drawn."""
    area = height * width
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(10):
        target = area * (scale[0] + draws[attempt] * (scale[1] - scale[0]))
        aspect = math.exp(low + draws[10 + attempt] * (high - low))
        w = round(math.sqrt(target * aspect))
        h = round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(draws[20] * (height - h + 1)), int(draws[21] * (width - w + 1)), h, w
    found = width / height
    h, w = height, width
    if found < min(ratio):
        h = round(w / min(ratio))
    elif found > max(ratio):
        w = round(h * max(ratio))
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(
    ("scale", "ratio"), [(SCALE, RATIO), ((0.9, 1.0), RATIO), ((0.08, 0.5), (1, 1))]
)
def test_crop_boxes_equal_torchvisions_rule_draw_by_draw(scale, ratio):
    rng = np.random.default_rng(0)
    heights, widths = rng.integers(1, 400, (2, 1000))
    heights[:100] *= 20  # so tall that few attempts fit
    draws = rng.random((1000, CROP_DRAWS)).astype(np.float32)

    boxes = crop_boxes(heights, widths, draws, AugmentConfig(crop_scale=scale, crop_ratio=ratio))

    given = zip(heights.tolist(), widths.tolist(), draws.astype(np.float64), strict=True)
    assert boxes.dtype == np.int64
    assert boxes.tolist() == [list(torchvision_box(h, w, d, scale, ratio)) for h, w, d in given]


def test_boxes_chosen_all_at_once_are_those_chosen_one_by_one():
    rng = np.random.default_rng(5)
    heights, widths = rng.integers(1, 400, (2, 1000))
    draws = rng.random((1000, CROP_DRAWS)).astype(np.float32)

    boxes = crop_boxes(heights, widths, draws, AUGMENT)

    given = zip(heights.tolist(), widths.tolist(), draws.tolist(), strict=True)
    assert boxes.tolist() == [list(random_box(*g, AUGMENT)) for g in given]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 900), (3000, 1), (2, 3)])
def test_crop_boxes_lie_inside_images_of_any_shape(height, width):
    draws = np.random.default_rng(0).random((200, CROP_DRAWS)).astype(np.float32)
    draws[0], draws[1] = 0, np.nextafter(np.float32(1), np.float32(0))
    sides = np.full(200, height), np.full(200, width)

    boxes = crop_boxes(*sides, draws, AUGMENT)

    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= (height, width)).all()


def test_crop_boxes_are_distributed_as_torchvisions():
    rng = np.random.default_rng(0)
    sides = np.full(4000, 300), np.full(4000, 400)
    boxes = crop_boxes(*sides, rng.random((4000, CROP_DRAWS)), AUGMENT)

    canvas = torch.empty(1, 300, 400)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = [
            RandomResizedCrop.get_params(canvas, list(SCALE), list(RATIO)) for _ in range(4000)
        ]

    ours, others = boxes.astype(np.float64), np.array(theirs, dtype=np.float64)
    error = np.hypot(ours.std(axis=0), others.std(axis=0)) / math.sqrt(4000)
    assert (np.abs(ours.mean(axis=0) - others.mean(axis=0)) < 4 * error).all()
    assert np.allclose(ours.std(axis=0), others.std(axis=0), rtol=0.06)


def test_a_scale_of_one_keeps_whole_images_of_any_shape():
    heights, widths = np.array([28, 100, 7]), np.array([28, 300, 90])
    draws = np.random.default_rng(0).random((3, CROP_DRAWS))

    boxes = crop_boxes(heights, widths, draws, AugmentConfig(crop_scale=(1, 1)))

    assert boxes.tolist() == [[0, 0, 28, 28], [0, 0, 100, 300], [0, 0, 7, 90]]


def clipped_boxes(height, width, count, *, scale=(0.08, 1.0), seed=0):
    """Draw crops as the published linear probe's definition says: one draw, clipped.

    An area uniform in the scale, a ratio of the sides uniform in its logarithm; sides that are
    larger than the image are cut to it; the place is uniform.
    """
    rng = np.random.default_rng(seed)
    area = height * width * rng.uniform(*scale, count)
    ratio = np.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3), count))
    w = np.minimum(np.rint(np.sqrt(area * ratio)), width)
    h = np.minimum(np.rint(np.sqrt(area / ratio)), height)
    return np.stack([rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w], axis=1)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (400, 400), (90, 600)])
def test_clipped_crops_are_distributed_as_the_published_linear_probes(height, width):
    count = 40_000
    expected = clipped_boxes(height, width, count)
    sides = np.full(count, height), np.full(count, width)
    draws = np.random.default_rng(1).random((count, CROP_DRAWS)).astype(np.float32)

    boxes = crop_boxes(*sides, draws, AugmentConfig(crop_scale=(0.08, 1), crop_clip=True))

    error = np.hypot(boxes.std(axis=0), expected.std(axis=0)) / math.sqrt(count)
    assert (np.abs(boxes.mean(axis=0) - expected.mean(axis=0)) < 4 * error + 1e-9).all()
    areas = [found[:, 2:].prod(axis=1) / (height * width) for found in (boxes, expected)]
    assert areas[0].mean() == pytest.approx(areas[1].mean(), abs=0.006)
    assert (areas[0] == 1).mean() == pytest.approx((areas[1] == 1).mean(), abs=0.006)


def test_a_clipped_crop_of_a_photograph_covers_52_percent_and_a_retried_one_44():
    sides = np.full(40_000, 375), np.full(40_000, 500)
    draws = np.random.default_rng(2).random((40_000, CROP_DRAWS)).astype(np.float32)

    means = []
    for clip in (True, False):
        boxes = crop_boxes(*sides, draws, AugmentConfig(crop_scale=(0.08, 1), crop_clip=clip))
        means.append(boxes[:, 2:].prod(axis=1).mean() / (375 * 500))

    assert means == pytest.approx([0.520, 0.435], abs=0.005)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 900), (3000, 1), (2, 3), (375, 500)])
def test_clipped_boxes_lie_inside_images_and_are_those_chosen_one_by_one(height, width):
    draws = np.random.default_rng(0).random((500, CROP_DRAWS)).astype(np.float32)
    draws[0], draws[1] = 0, np.nextafter(np.float32(1), np.float32(0))
    sides = np.full(500, height), np.full(500, width)
    how = AugmentConfig(crop_scale=(0.08, 1), crop_clip=True)

    boxes = crop_boxes(*sides, draws, how)

    assert boxes.tolist() == [list(random_box(height, width, d, how)) for d in draws.tolist()]
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= (height, width)).all()


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ((224, 224), (0, 0, 224, 224)),
        ((256, 300), (16, 38, 224, 224)),
        ((100, 300), (0, 100, 100, 100)),
        ((112, 90), (11, 0, 90, 90)),
    ],
)
def test_the_central_pixels_are_cut_out_as_they_are_unless_too_few(
    shape: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    assert central_pixels_box(*shape, size=(224, 224)) == box
