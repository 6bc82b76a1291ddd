"""Twenty kinds of unreadable files and eleven odd ones: a reason in one line, or an image."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae.config.run import AugmentConfig
from mae.data.batching.batch import BatchPlan, evaluation_batch, training_batch
from mae.data.decoding.decode import BadImage, PixelKind, decode
from mae.data.sources.source import FolderSource
from tests.bad_images import BAD, ODD, write_bad, write_good

RGB = PixelKind("uint8", 3)


def plan(source: FolderSource, *, batch: int) -> BatchPlan:
    return BatchPlan(
        source=source, kind=RGB, size=(12, 20), grid=(3, 5), augment=AugmentConfig(),
        batch=batch, seed=3,
    )  # fmt: skip


def test_there_are_twenty_kinds() -> None:
    assert len({(name, ending) for name, ending, _ in BAD}) == 20


def test_every_kind_is_a_reason_of_one_line(tmp_path: Path) -> None:
    names = write_bad(tmp_path)
    source = FolderSource(tmp_path)

    assert [source.name(index) for index in range(len(source))] == names
    for index in range(len(source)):
        with pytest.raises(BadImage, match=r"^[^\n\t]+$"):
            decode(source.read(index), kind=RGB)


@pytest.mark.parametrize(("name", "ending", "data"), ODD, ids=[f"{n}.{e}" for n, e, _ in ODD])
def test_odd_files_are_images_whatever_their_name(name: str, ending: str, data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as image:
        first = np.asarray(image.convert("RGB"))

    pixels = decode(data, kind=RGB)

    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
    if name == "turned":
        first = np.rot90(first, 3)
    if name != "deep":  # Pillow clips it
        assert np.array_equal(pixels, first)
    assert pixels.size == 3 or pixels.std() > 0


def test_one_pixel_fills_a_crop(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(next(data for name, _, data in ODD if name == "one pixel"))

    images = training_batch(plan(FolderSource(tmp_path), batch=1), 0).images

    assert images.shape == (1, 3, 12, 20)
    assert images.flatten(2).float().std(dim=2).eq(0).all()


def test_a_file_that_vanished_after_listing_is_replaced_and_named(tmp_path: Path) -> None:
    write_good(tmp_path, count=8)
    source = FolderSource(tmp_path)
    (tmp_path / "0003.jpg").unlink()

    batch = training_batch(plan(source, batch=8), 0)

    assert {(bad.name, bad.reason) for bad in batch.bad} == {
        ("0003.jpg", "no such file or directory")
    }
    assert len(batch.images) == 8


def test_a_file_that_may_not_be_read_is_replaced_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_good(tmp_path, count=8)
    real = open

    def denied(path: str, *how: str) -> object:
        # Permissions do not stop the superuser, whom tests may run as.
        if str(path).endswith("0003.jpg"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, *how)

    monkeypatch.setattr("builtins.open", denied)
    batch = training_batch(plan(FolderSource(tmp_path), batch=8), 0)

    assert {(bad.name, bad.reason) for bad in batch.bad} == {("0003.jpg", "permission denied")}


def test_what_stands_in_for_a_broken_file_is_the_same_each_time_and_sound(tmp_path: Path) -> None:
    write_good(tmp_path, count=30)
    write_bad(tmp_path)
    source = FolderSource(tmp_path)

    first, second = (training_batch(plan(source, batch=50), 0) for _ in range(2))

    assert first.images.equal(second.images) and first.bad == second.bad
    assert {bad.name for bad in first.bad} == {n for n in os.listdir(tmp_path) if "bad" in n}
    evaluated = evaluation_batch(source, range(50), kind=RGB, size=(12, 20))
    assert len(evaluated.images) == 30 and len(evaluated.bad) == 20
