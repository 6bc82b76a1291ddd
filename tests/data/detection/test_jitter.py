"""Boxes and masks go along with the pixels that they mark."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae.config.run import AugmentConfig
from mae.data.batching.batch import BatchPlan, training_batch
from mae.data.decoding.decode import BadImage, PixelKind
from mae.data.detection.jitter import JITTER_DRAWS, JitterRule, jittered
from mae.data.detection.source import Boxed, Instances
from mae.data.sampling.draws import Stream, uniform
from mae.data.segmentation.coco import run_lengths_of
from mae.data.types import Size
from tests.boxes import write_coco
from tests.data.detection.test_forms import opened

KIND, SIZE = PixelKind("uint8", 3), (60, 90)
# x0 y0 x1 y1 of rectangles that are the only bright pixels of their channel.
BOXES = ((10, 8, 40, 30), (50, 20, 85, 55), (0, 40, 30, 60))


def boxed(*, masks: bool) -> Boxed:
    """Three rectangles, each in a channel of its own; polygon, run lengths, polygon."""
    pixels = np.zeros((*SIZE, 3), dtype=np.uint8)
    segmentations = list[object]()
    for channel, (x0, y0, x1, y1) in enumerate(BOXES):
        pixels[y0:y1, x0:x1, channel] = 255
        inside = pixels[..., channel] > 0
        polygon = [[x0, y0, x1, y0, x1, y1, x0, y1]]
        segmentations.append(run_lengths_of(inside) if channel == 1 else polygon)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    areas = np.array([(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in BOXES], dtype=np.float64)
    instances = Instances(
        SIZE,
        np.array(BOXES, dtype=np.float32),
        np.arange(3),
        np.array([False, True, False]),
        areas,
        tuple(segmentations) if masks else (None,) * 3,
    )
    return Boxed(file.getvalue(), instances)


def cut(
    draws: list[float],
    *,
    size: Size = (64, 80),
    flip: bool = False,
    masks: bool = True,
    fill: int = 0,
) -> tuple[np.ndarray, Instances]:
    rule = JitterRule(fill=(fill,))
    return jittered(boxed(masks=masks), draws, flip=flip, kind=KIND, size=size, rule=rule)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_boxes_and_masks_cover_the_pixels_that_they_mark(
    *, seed: int, masks: bool, flip: bool
) -> None:
    draws = uniform(seed, 1, np.array([7]), stream=Stream.JITTER, count=JITTER_DRAWS)[0].tolist()

    image, found = cut(draws, flip=flip, masks=masks)

    (h, w), shown = found.size, image.any(axis=2)
    assert image.shape == (64, 80, 3) and h <= 64 and w <= 80
    assert not shown[h:].any() and not shown[:, w:].any()
    image = image[:h, :w]
    shown = {channel for channel in range(3) if (image[..., channel] > 127).sum() > 15}
    assert shown <= {*found.classes.tolist()}
    for place, channel in enumerate(found.classes.tolist()):
        bright = image[..., channel] > 127
        rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
        around = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert found.boxes[place] == pytest.approx(around, abs=1.01)
        assert found.crowd[place] == (channel == 1)
        drawn = found.mask(place)
        assert (drawn != bright).sum() <= 2 * (len(rows) + len(columns)) + 4
        assert found.areas[place] == pytest.approx(bright.sum(), rel=0.3, abs=9)


def test_at_the_scale_that_fits_it_is_only_resized_and_padded() -> None:
    # Scale 1 of 0.1 to 2: 60 x 90 fits into 64 x 45 at half its size, 30 x 45.
    image, found = cut([0.9 / 1.9, 0.5, 0.5], size=(64, 45), fill=9)

    assert (image[30:] == 9).all() and not (image[:30] == 9).all()
    assert found.boxes == pytest.approx(np.array(BOXES) / 2, abs=1e-3)
    assert found.areas == pytest.approx([165, 306.25, 150], rel=1e-4)
    assert found.size == (30, 45) and found.masks().any()


def test_objects_outside_of_the_crop_are_dropped() -> None:
    # Scale 2: the crop shows a half of each side, at the bottom right.
    _, found = cut([1 - 1e-7, 1 - 1e-7, 1 - 1e-7], size=(60, 90), masks=False)

    assert found.classes.tolist() == [1]
    assert found.boxes[0] == pytest.approx([10, 0, 80, 50], abs=1e-3)


def test_the_box_of_a_cut_object_is_that_of_the_rest_of_its_mask() -> None:
    # An L from (0, 0): its foot is at the bottom of a crop that shows the bottom right half.
    whole = boxed(masks=True)
    foot = [[0, 0, 10, 0, 10, 50, 80, 50, 80, 60, 0, 60]]
    one = Instances(
        SIZE, np.array([[0, 0, 80, 60]], np.float32), np.zeros(1, np.int64),
        np.zeros(1, np.bool_), np.array([1300.0]), (foot,),
    )  # fmt: skip
    draws = [1 - 1e-7] * 3

    _, found = jittered(
        Boxed(whole.image, one), draws, flip=False, kind=KIND, size=SIZE, rule=JitterRule()
    )

    # The part is x from 45, y from 30: the foot is x 45 to 80, y 50 to 60, twice as large.
    assert found.boxes.tolist() == [[0, 40, 70, 60]]
    _, mirrored = jittered(
        Boxed(whole.image, one), draws, flip=True, kind=KIND, size=SIZE, rule=JitterRule()
    )
    assert mirrored.boxes.tolist() == [[20, 40, 90, 60]]
    assert mirrored.masks()[0, 40:60, 20:90].all() and mirrored.masks().sum() == 20 * 70


def test_an_image_of_another_size_than_its_boxes_is_bad() -> None:
    found = boxed(masks=False)
    other = Boxed(found.image, found.instances._replace(size=(61, 90)))

    with pytest.raises(BadImage, match="60 x 90, its boxes were drawn on 61 x 90"):
        jittered(other, [0.5] * 3, flip=False, kind=KIND, size=SIZE, rule=JitterRule())


def test_a_batch_draws_by_seed_epoch_and_image(tmp_path: Path) -> None:
    source = opened(write_coco(tmp_path, count=7))
    plan = BatchPlan(
        source=source, kind=KIND, size=(48, 64), augment=AugmentConfig(), batch=5, seed=3,
        annotated=JitterRule(),
    )  # fmt: skip

    batch = training_batch(plan, 2)  # one whole batch an epoch: epoch 2

    assert batch.objects is not None and len(batch.objects) == 5 and not batch.bad
    draw = partial(uniform, 3, 2)
    for place, index in enumerate(batch.ids.tolist()):
        ids = np.array([index])
        image, expected = jittered(
            Boxed(source.read(index), source.instances(index)),
            draw(ids, stream=Stream.JITTER, count=JITTER_DRAWS)[0].tolist(),
            flip=bool(draw(ids, stream=Stream.FLIP, count=1)[0, 0] < plan.augment.flip),
            kind=KIND,
            size=plan.size,
            rule=JitterRule(),
        )
        assert np.array_equal(batch.images[place].permute(1, 2, 0).numpy(), image)
        assert np.array_equal(batch.objects[place].boxes, expected.boxes)
        assert np.array_equal(batch.objects[place].masks(), expected.masks())
    first, second = batch.split(3)
    assert first.objects == batch.objects[:3] and second.objects == batch.objects[3:]
