import hashlib
import lzma
from importlib import resources

import numpy as np
import pytest

from mae.data.sources import fashion_mnist as builtin
from mae.data.sources.fashion_mnist import CLASS_NAMES, fashion_mnist, unpack
from mae.errors import DataError

# sha256 of the values in the original IDX files (labels a byte each); of the training files,
# of their first 30,000.
ORIGINAL = {
    "test": (
        "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
        "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
    ),
    "train": (
        "25f13e954dedcdf7ff111e44bcee1a4b12ca7e42e5265b817878bdab15d82b81",
        "5cf07738c3fe9bf6d9ab14eb5d50c4f3cc5cdfa4045375f0252ae5fca8f3c274",
    ),
}
ASSETS = resources.files("mae") / "assets"


@pytest.mark.parametrize(("split", "count"), [("test", 10_000), ("train", 30_000)])
def test_every_image_and_label_is_that_of_the_original_files_in_their_order(split, count):
    source = fashion_mnist(split)

    images, labels = source.images, source.labels
    assert images.shape == (count, 28, 28, 1)
    digests = (
        hashlib.sha256(images.tobytes()).hexdigest(),
        hashlib.sha256(labels.astype(np.uint8).tobytes()).hexdigest(),
    )
    assert digests == ORIGINAL[split]


def test_the_test_set_holds_a_thousand_images_of_each_class():
    assert np.bincount(fashion_mnist("test").labels).tolist() == [1000] * 10


def test_the_sources_have_one_channel_and_named_classes():
    source = fashion_mnist("train")

    assert source.images.shape == (30_000, 28, 28, 1)
    assert source.images.dtype == np.uint8
    assert source.labels is not None
    assert source.labels.dtype == np.int64
    assert source.class_names[source.labels[0]] == "Ankle boot"  # as the data set's page shows
    assert (len(CLASS_NAMES), CLASS_NAMES[0], CLASS_NAMES[8]) == (10, "T-shirt/top", "Bag")


def test_what_is_shared_by_all_callers_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        fashion_mnist("test").images[0] = 0


def test_the_package_carries_at_most_15_megabytes_of_assets_with_the_notice_of_the_images():
    assert sum(len(path.read_bytes()) for path in ASSETS.iterdir()) <= 15_000_000
    notice = (ASSETS / "fashion-mnist-LICENSE.txt").read_text()
    assert "Copyright (c) 2017 Zalando SE" in notice
    assert "Permission is hereby granted, free of charge" in notice


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        (b"not an xz file", "damaged"),
        (lzma.compress(b"other images"), "another file"),
        (lzma.compress(b"cut short")[:-9], "damaged"),
        (b"", "damaged"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line_that_says_what_to_do(packed, reason):
    with pytest.raises(DataError, match=f"{reason}.* Install the package again") as caught:
        unpack(packed)

    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(monkeypatch):
    monkeypatch.setattr(builtin, "_FILE", "gone.xz")

    with pytest.raises(DataError, match=r"no gone\.xz in the package"):
        builtin._everything.__wrapped__()
