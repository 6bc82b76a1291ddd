"""RandAugment: timm's own operations, drawn for each image by itself."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image
from timm.data.auto_augment import rand_augment_transform

from mae.data.augment.randaugment import RandAugment, augmented, check_randaugment
from mae.data.decoding.decode import PixelKind
from mae.errors import ConfigError
from tests.images import photo

PUBLISHED = RandAugment("rand-m9-mstd0.5-inc1", (0.485, 0.456, 0.406))
GREY = RandAugment("rand-m9-mstd0.5-inc1", (0.3,))
IMAGES = np.stack([photo(24, 40, seed=seed) for seed in range(30)])
IDS = np.arange(30)


def test_images_are_changed_as_timm_changes_them_after_the_same_seed(monkeypatch) -> None:
    seeds: list[object] = []
    seed_one, seed_other = random.seed, np.random.seed
    monkeypatch.setattr(random, "seed", lambda s: (seeds.append(s), seed_one(s)))
    monkeypatch.setattr(np.random, "seed", lambda s: (seeds.append(s), seed_other(s)))
    found = augmented(IMAGES, PUBLISHED, IDS, seed=1, epoch=2)
    monkeypatch.undo()

    other = rand_augment_transform(
        PUBLISHED.text,
        {
            "translate_const": 10,
            "img_mean": (124, 116, 104),
            "interpolation": Image.Resampling.BICUBIC,
        },
    )
    for i, image in enumerate(IMAGES):
        random.seed(seeds[2 * i])
        np.random.seed(seeds[2 * i + 1])
        assert np.array_equal(found[i], np.asarray(other(Image.fromarray(image))))
    assert len({str(seed) for seed in seeds}) == 60


def test_what_is_done_follows_from_seed_epoch_and_id_alone() -> None:
    whole = augmented(IMAGES, PUBLISHED, IDS, seed=1, epoch=2)

    part = augmented(IMAGES[10:13], PUBLISHED, IDS[10:13], seed=1, epoch=2)
    assert np.array_equal(part, whole[10:13])
    assert not np.array_equal(augmented(IMAGES, PUBLISHED, IDS, seed=1, epoch=3), whole)
    assert not np.array_equal(whole, IMAGES)


def test_an_image_posterized_to_no_bits_is_black_with_any_pillow() -> None:
    # Every operation happens, at magnitude 10: some of them leave 4 - 4 bits.
    highest = RandAugment("rand-m10-p1-inc1", PUBLISHED.mean)

    found = augmented(np.tile(IMAGES, (3, 1, 1, 1)), highest, np.arange(90), seed=0, epoch=0)

    assert any(not image.any() for image in found)


def test_the_global_generators_are_left_as_they_were() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist()

    augmented(IMAGES, PUBLISHED, IDS, seed=1, epoch=2)

    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_grey_images_are_taken_by_every_operation() -> None:
    grey = np.concatenate([IMAGES[..., :1]] * 10)

    after = augmented(grey, GREY, np.arange(300), seed=1, epoch=2)

    assert after.shape == (300, 24, 40, 1)
    check_randaugment(GREY, PixelKind("uint8", 1))


@pytest.mark.parametrize(
    "kind", [PixelKind("uint16", 1), PixelKind("float32", 3), PixelKind("uint8", 4)]
)
def test_other_kinds_of_images_are_refused(kind) -> None:
    with pytest.raises(ConfigError, match=f"got {kind.channels} channels of {kind.dtype}"):
        check_randaugment(PUBLISHED, kind)


@pytest.mark.parametrize("text", ["augmix-m3", "rand-x9", "rand-m9-mstd", "", "rand-m9-tnone"])
def test_what_timm_does_not_understand_is_refused(text) -> None:
    with pytest.raises(ConfigError, match="rand_augment: got .* expected timm's terms"):
        check_randaugment(PUBLISHED._replace(text=text), PixelKind("uint8", 3))
