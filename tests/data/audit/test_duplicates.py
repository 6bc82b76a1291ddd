"""Copies are found by digest, and images saved anew by their looks; others are left apart."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from mae.data.audit.duplicates import digest_of, exact_duplicates, near_duplicates, perceptual_hash
from tests.images import encoded, image


def saved_anew(original: Image.Image, *, size: tuple[int, int], quality: int) -> np.ndarray:
    data = encoded(original.resize(size), "JPEG", quality=quality)
    with Image.open(io.BytesIO(data)) as read:
        return np.asarray(read)


def test_equal_digests_are_grouped_in_order() -> None:
    digests = [digest_of(text) for text in (b"a", b"b", b"a", b"c", b"b", b"a")]

    assert exact_duplicates(digests) == [[0, 2, 5], [1, 4]]


def test_arrays_of_the_same_bytes_and_another_shape_are_not_the_same() -> None:
    pixels = np.arange(24, dtype=np.uint8)

    assert digest_of(pixels.reshape(2, 4, 3)) != digest_of(pixels.reshape(4, 2, 3))
    assert digest_of(pixels.reshape(2, 4, 3)) == digest_of(pixels.copy().reshape(2, 4, 3))


def test_an_image_saved_anew_looks_alike_and_others_do_not() -> None:
    originals = [image(60 + i, 90 - i, seed=i) for i in range(20)]
    looks = [perceptual_hash(np.asarray(original)) for original in originals]
    again = [perceptual_hash(saved_anew(p, size=(72, 48), quality=90)) for p in originals[:5]]

    assert near_duplicates(looks) == []
    assert near_duplicates(looks + again) == [[i, 20 + i] for i in range(5)]


def test_looks_of_any_type_and_channels_are_taken() -> None:
    pixels = np.asarray(image(60, 90))

    deep = perceptual_hash(pixels.astype(np.uint16) * 257)
    five = perceptual_hash(np.concatenate([pixels, pixels[..., :2]], axis=2).astype(np.float32))

    assert len(five) == len(deep) == 124
    assert near_duplicates([deep, perceptual_hash(pixels)]) == [[0, 1]]


def test_the_same_shape_in_other_colours_is_another_image() -> None:
    pixels = np.asarray(image(60, 90))

    assert (
        near_duplicates([perceptual_hash(pixels), perceptual_hash(np.roll(pixels, 1, axis=2) // 2)])
        == []
    )


def test_few_images_look_like_nothing() -> None:
    assert near_duplicates([]) == [] and near_duplicates([bytes(124)]) == []
    assert near_duplicates([bytes(124)] * 300) == [list(range(300))]
