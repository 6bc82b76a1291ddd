"""Crops of images and masks: alike, drawn by id, and as the masks are by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mae.config.run import AugmentConfig
from mae.data.augment.distort import DISTORT_DRAWS
from mae.data.batching.batch import BatchPlan, training_batch
from mae.data.batching.loader import batches
from mae.data.decoding.decode import BadImage, PixelKind
from mae.data.segmentation.check import check
from mae.data.segmentation.crop import SEGMENT_DRAWS, CropRule, cropped_pair, nearest
from mae.data.segmentation.layout import find_masked
from mae.data.segmentation.source import IGNORE, Pair
from mae.progress import Progress
from tests.segments import write_segmented

KIND = PixelKind("uint8", 3)


def plan_of(root: Path, **fields: object) -> BatchPlan:
    whole = find_masked(write_segmented(root, count=7)).whole
    assert whole is not None
    part = whole()
    source = check([part], max_bad=0, progress=Progress(quiet=True)).source(part)
    plan = BatchPlan(source=source, kind=KIND, size=(24, 32), augment=AugmentConfig(), batch=6,
                     seed=3, annotated=CropRule(fill=(1, 2, 3)))  # fmt: skip
    return replace(plan, **fields)  # type: ignore[arg-type]


def coded(height: int, width: int) -> Pair:
    """Give an image whose first channel is its mask, in steps that show a shift of a pixel."""
    mask = (np.arange(height)[:, None] // 8 + np.arange(width)[None] // 8).astype(np.uint8)
    return Pair(np.stack([mask * 8, mask, mask], axis=-1), mask)


def drawn(*values: float) -> list[float]:
    """Give draws that begin with those."""
    return [*values, *[0.0] * (SEGMENT_DRAWS - len(values))]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("draws", [(0.0, 0.3, 0.7), (0.4, 0.9, 0.1), (0.99, 0.5, 0.5)])
def test_image_and_mask_are_resized_and_cropped_alike(
    draws: tuple[float, ...], *, flip: bool
) -> None:
    image, mask = cropped_pair(
        coded(64, 96),
        drawn(*draws),
        flip=flip,
        kind=KIND,
        size=(40, 56),
        rule=CropRule(fill=(255, 0, 0)),
    )

    shown = mask != IGNORE
    assert np.array_equal(shown, image[..., 0] != 255)
    # A pixel of a step's edge may be between two values; the mask takes one of them.
    assert np.abs(image[..., 0] / 8 - mask)[shown].max() <= 1
    assert (np.abs(image[..., 0] / 8 - mask)[shown] < 0.3).mean() > 0.7


def test_half_size_is_padded_with_the_fill_and_ignored_pixels() -> None:
    pair = coded(20, 30)

    image, mask = cropped_pair(
        pair, drawn(), flip=False, kind=KIND, size=(12, 18), rule=CropRule(fill=(7, 8, 9))
    )

    assert np.array_equal(mask[:10, :15], nearest(pair.mask, size=(10, 15)))
    assert (mask[10:] == IGNORE).all() and (mask[:, 15:] == IGNORE).all()
    assert image[-1, -1].tolist() == [7, 8, 9]


def test_the_short_side_is_resized_first_but_not_beyond_four_times_for_the_long_one() -> None:
    assert CropRule(short_side=50).factor((100, 120)) == 0.5
    assert CropRule(short_side=50).factor((10, 2000), scale=2) == pytest.approx(2 * 200 / 2000)
    assert CropRule().factor((100, 120), scale=0.7) == 0.7


def test_nearest_takes_the_pixel_under_the_centre() -> None:
    mask = np.arange(6, dtype=np.uint8).reshape(2, 3)

    assert nearest(mask, size=(2, 2)).tolist() == [[0, 2], [3, 5]]
    assert nearest(mask, size=(4, 3)).tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5], [3, 4, 5]]


def test_another_place_is_drawn_where_one_class_has_too_much() -> None:
    mask = np.zeros((8, 40), dtype=np.uint8)
    mask[:, 30:] = 1
    pair = Pair(np.repeat(mask[..., None], 3, axis=2), mask)
    rule = CropRule(scale=(1, 1), most_of_class=0.75)
    places = drawn(0, 0, 0, 0, 0.5, 0, 0.76)  # left: 0, 16 and 25 of 0 to 32

    _, found = cropped_pair(pair, places, flip=False, kind=KIND, size=(8, 8), rule=rule)

    assert found[0].tolist() == [0] * 5 + [1] * 3
    any_place = rule._replace(most_of_class=1)
    _, first = cropped_pair(pair, places, flip=False, kind=KIND, size=(8, 8), rule=any_place)
    assert not first.any()


def test_colours_are_drawn_for_the_image_alone() -> None:
    pair = coded(20, 30)
    draws = [*drawn()[:-DISTORT_DRAWS], 0.0, 0.75, *[0.9] * (DISTORT_DRAWS - 2)]  # + 16 of 255
    rule = CropRule(scale=(1, 1), distort=True)

    image, mask = cropped_pair(pair, draws, flip=False, kind=KIND, size=(20, 30), rule=rule)

    assert np.array_equal(mask, pair.mask)
    assert np.array_equal(image, np.asarray(pair.image) + 16)


def test_a_mask_of_another_size_is_a_bad_image() -> None:
    pair = Pair(np.zeros((5, 6, 3), np.uint8), np.zeros((5, 7), np.uint8))

    with pytest.raises(BadImage, match="5 x 6, its mask 5 x 7"):
        cropped_pair(pair, drawn(), flip=False, kind=KIND, size=(4, 4), rule=CropRule())


def test_shares_of_ranks_hold_the_pairs_of_the_whole_batch(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)

    whole = training_batch(plan, 1)
    parts = [training_batch(replace(plan, share=(rank, 2)), 1) for rank in range(2)]

    assert whole.masks is not None and whole.masks.shape == (6, 24, 32)
    assert torch.equal(torch.cat([p.masks for p in parts if p.masks is not None]), whole.masks)
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert [len(part.masks) for part in whole.split(4) if part.masks is not None] == [4, 2]


def test_other_epochs_have_other_crops(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)

    one, other = training_batch(plan, 0), training_batch(plan, 1)

    shared = {*one.ids.tolist()} & {*other.ids.tolist()}
    places = [(one.ids.tolist().index(i), other.ids.tolist().index(i)) for i in shared]
    assert places and not any(torch.equal(one.images[a], other.images[b]) for a, b in places)


@pytest.mark.slow
def test_reader_processes_give_the_same_pairs(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)

    here, there = (list(batches(plan, start=0, stop=3, workers=n)) for n in (0, 2))

    for one, other in zip(here, there, strict=True):
        assert one.masks is not None and other.masks is not None
        assert torch.equal(one.images, other.images) and torch.equal(one.masks, other.masks)
