"""What a network is shown in evaluation equals torchvision's Resize and CenterCrop, on every path.

The reference resizes by Pillow, horizontal pass first. Since 13.0 Pillow takes the vertical pass
first where that is cheaper, so `Resize` is given each pass by itself.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from mae.config.model import PixelDtype
from mae.data.augment.crop import central_pixels, evaluation_view
from mae.data.batching.batch import evaluation_batch
from mae.data.decoding.decode import PixelKind
from mae.data.sources.open import open_source
from mae.data.sources.source import ArraySource, FolderSource, Source
from mae.jobs.data_pack import asked_form, pack
from tests.data.augment.test_crop import psnr
from tests.images import encoded, photo

SHAPES = [(375, 500), (500, 375), (427, 640), (224, 224), (257, 333), (256, 256), (97, 61)]
SIZES = [97, 160, 224, 384, 448]
PEAKS = {"uint8": 255, "uint16": 65535, "float32": 1}
RANGES = {"uint8": (0, 255), "uint16": (0, 65535), "float32": (None, np.inf)}


def photograph(height: int, width: int, *, seed: int = 0) -> Image.Image:
    """Cut a photograph to a shape and reduce it."""
    whole = Image.fromarray(load_sample_images().images[seed % 2])  # 427 x 640
    factor = min(640 / width, 427 / height)
    w, h = min(640, int(factor * width)), min(427, int(factor * height))
    box = ((640 - w) // 2, (427 - h) // 2, (640 + w) // 2, (427 + h) // 2)
    return whole.resize((width, height), Image.Resampling.LANCZOS, box=box)


def published(image: Image.Image, edge: int, crop_pct: float) -> NDArray[np.generic]:
    """Resize the short side and cut the centre, as the published code asks torchvision to."""
    short, (width, height) = int(edge / crop_pct), image.size
    long = int(short * max(width, height) / min(width, height))
    return resized_and_cut(image, (long, short) if width <= height else (short, long), (edge, edge))


def resized_and_cut(
    image: Image.Image, resized: tuple[int, int], size: tuple[int, int]
) -> NDArray[np.generic]:
    """Resize to height and width, then cut the centre."""
    for sides in ((image.height, resized[1]), resized):
        image = Resize(sides, InterpolationMode.BICUBIC, antialias=True)(image)
    return np.asarray(CenterCrop(size)(image))


def shown(source: Source, size: tuple[int, int], *, kind: PixelKind) -> NDArray[np.generic]:
    """Read the first image as evaluation does: h w C."""
    read = evaluation_batch(source, [0], kind=kind, size=size)
    assert not read.bad
    return read.images[0].permute(1, 2, 0).numpy()


def jpeg(folder: Path, image: Image.Image, **options: object) -> Image.Image:
    """Write a JPEG and give what Pillow reads of it."""
    data = encoded(image, "JPEG", quality=92, **options)
    (folder / "a.jpg").write_bytes(data)
    return Image.open(io.BytesIO(data)).convert("RGB")


def fast_jpeg(folder: Path, image: Image.Image) -> tuple[Source, Image.Image]:
    stored = jpeg(folder, image)
    return FolderSource(folder), stored


def jpeg_that_pillow_looks_at(folder: Path, image: Image.Image) -> tuple[Source, Image.Image]:
    exif = Image.Exif()
    exif[0x0112] = 1
    stored = jpeg(folder, image, exif=exif)
    return FolderSource(folder), stored


def cmyk_jpeg(folder: Path, image: Image.Image) -> tuple[Source, Image.Image]:
    stored = jpeg(folder, image.convert("CMYK"))
    return FolderSource(folder), stored


def png(folder: Path, image: Image.Image) -> tuple[Source, Image.Image]:
    image.save(folder / "a.png")
    return FolderSource(folder), image


def packed(folder: Path, image: Image.Image) -> tuple[Source, Image.Image]:
    stored = jpeg(folder, image)
    pack(str(folder), folder / "pack", quiet=True)
    return open_source(folder / "pack"), stored


def in_a_tar(folder: Path, image: Image.Image) -> tuple[Source, Image.Image]:
    stored = jpeg(folder, image)
    with tarfile.open(folder / "a.tar", "w") as tar:
        tar.add(folder / "a.jpg", "a.jpg")
    return open_source(folder / "a.tar"), stored


def in_memory(folder: Path, image: Image.Image) -> tuple[Source, Image.Image]:
    return ArraySource(np.asarray(image)[None]), image


def npy_file(folder: Path, image: Image.Image) -> tuple[Source, Image.Image]:
    np.save(folder / "a.npy", np.asarray(image))
    return FolderSource(folder), image


Path_ = Callable[[Path, Image.Image], tuple[Source, Image.Image]]


@pytest.mark.parametrize("edge", SIZES)
@pytest.mark.parametrize(
    "path",
    [fast_jpeg, jpeg_that_pillow_looks_at, cmyk_jpeg, png, packed, in_a_tar, in_memory, npy_file],
)
def test_every_path_shows_the_published_view_to_60_db(
    path: Path_, edge: int, tmp_path: Path
) -> None:
    shapes = SHAPES if path is fast_jpeg else SHAPES[:2]
    for seed, shape in enumerate(shapes):
        folder = tmp_path / str(seed)
        folder.mkdir()
        source, stored = path(folder, photograph(*shape, seed=seed))

        found = shown(source, (edge, edge), kind=PixelKind("uint8", 3))

        expected = published(stored, edge, 224 / 256 if edge <= 224 else 1.0)
        assert psnr(found, expected) >= 60, shape


def test_a_pack_of_raw_pixels_shows_the_published_view(tmp_path: Path) -> None:
    _, image = png(tmp_path, photograph(256, 256))
    form = asked_form(short_side=None, quality=None, raw=256)
    pack(str(tmp_path), tmp_path / "pack", form=form, quiet=True)

    found = shown(open_source(tmp_path / "pack"), (160, 160), kind=PixelKind("uint8", 3))

    assert psnr(found, published(image, 160, 224 / 256)) >= 60


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(("shape", "edge"), [((28, 28), 28), ((32, 32), 32), ((41, 67), 24)])
def test_small_arrays_of_every_kind_show_the_published_view(
    shape: tuple[int, int], edge: int, dtype: PixelDtype, channels: int
) -> None:
    peak = PEAKS[dtype]
    array = (photo(*shape, channels=channels) * (peak / 255)).astype(dtype)

    found = shown(ArraySource(array[None]), (edge, edge), kind=PixelKind(dtype, channels))

    assert found.dtype == dtype
    for channel in range(channels):
        plane = array[..., channel]
        image = Image.fromarray(plane if dtype == "uint8" else plane.astype(np.float32))
        expected = published(image, edge, 224 / 256).clip(*RANGES[dtype])
        assert psnr(found[..., channel], expected, peak) >= 60


@pytest.mark.parametrize(
    ("crop_pct", "resized"), [(0.875, 256), (0.9, 248), (0.95, 235), (1.0, 224), (0.965, 232)]
)
def test_the_fraction_decides_how_large_the_image_is_before_it_is_cut(
    crop_pct: float, resized: int
) -> None:
    image = photograph(375, 500)

    found = evaluation_view(np.asarray(image), size=(224, 224), crop_pct=crop_pct)

    expected = resized_and_cut(image, (resized, int(resized * 500 / 375)), (224, 224))
    assert psnr(found, expected) >= 60


@pytest.mark.parametrize(
    ("shape", "size", "crop_pct", "resized"),
    [
        (
            (375, 500),
            (96, 160),
            0.875,
            (136, 182),
        ),  # 160 / 0.875 = 182.9 and 182 * 375 / 500 = 136.5
        ((500, 375), (96, 160), 0.875, (242, 182)),
        ((300, 500), (96, 160), 0.875, (109, 182)),  # 96 / 0.875 = 109.71; 182 * 300 / 500 = 109.2
        ((299, 500), (96, 160), 0.875, (109, 182)),  # 109 * 500 / 299 = 182.3: the height decides
        ((200, 500), (96, 160), 1.0, (96, 240)),
        ((60, 40), (96, 160), 1.0, (240, 160)),  # enlarged
    ],
)
def test_where_height_and_width_differ_both_sides_are_covered(
    shape: tuple[int, int], size: tuple[int, int], crop_pct: float, resized: tuple[int, int]
) -> None:
    image = photograph(*shape)

    found = evaluation_view(np.asarray(image), size=size, crop_pct=crop_pct)

    assert found.shape == (*size, 3)
    assert psnr(found, resized_and_cut(image, resized, size)) >= 60


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("shape", [(20, 900), (700, 31), (1, 3000), (2000, 3)])
def test_long_images_show_the_published_view(shape: tuple[int, int], dtype: PixelDtype) -> None:
    peak = PEAKS[dtype]
    array = (photo(*shape, channels=3) * (peak / 255)).astype(dtype)

    found = evaluation_view(array, size=(32, 32), crop_pct=0.875)

    for channel in range(3):
        plane = array[..., channel]
        image = Image.fromarray(plane if dtype == "uint8" else plane.astype(np.float32))
        expected = published(image, 32, 0.875).clip(*RANGES[dtype])
        assert psnr(found[..., channel], expected, peak) >= 60


def test_the_longest_image_is_shown_without_its_resized_whole() -> None:
    line = np.tile(np.arange(256, dtype=np.uint8), 256)[None, :, None]  # 1 x 65,536

    found = evaluation_view(line, size=(224, 224), crop_pct=0.875)

    # Its height would become 256, its width 16,777,216; only the pixels of the middle count.
    middle = evaluation_view(line[:, 32768 - 9 : 32768 + 9], size=(224, 224), crop_pct=0.875)
    assert found.shape == (224, 224, 1) and psnr(found, middle) >= 60


def test_an_image_of_the_resized_size_is_cut_pixel_for_pixel() -> None:
    array = photo(256, 300)

    found = evaluation_view(array, size=(224, 224), crop_pct=0.875)

    assert np.array_equal(found, array[16:240, 38:262])
    assert not np.shares_memory(found, array) and found.flags.c_contiguous


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_whole_image_of_the_network_size_stays_as_it_is(dtype: PixelDtype) -> None:
    array = photo(28, 28, channels=1).astype(dtype)

    assert np.array_equal(evaluation_view(array, size=(28, 28), crop_pct=1.0), array)


def test_read_only_and_backward_memory_can_be_shown() -> None:
    array = photo(60, 90)
    frozen = array.copy()
    frozen.flags.writeable = False
    expected = evaluation_view(array, size=(32, 32))

    assert np.array_equal(evaluation_view(frozen, size=(32, 32)), expected)
    assert np.array_equal(evaluation_view(np.asfortranarray(array), size=(32, 32)), expected)


def test_without_a_fraction_the_view_is_the_published_one() -> None:
    array = photo(300, 400)
    shows = partial(evaluation_view, array)

    assert np.array_equal(shows(size=(224, 224)), shows(size=(224, 224), crop_pct=0.875))
    assert np.array_equal(shows(size=(224, 448)), shows(size=(224, 448), crop_pct=0.875))
    assert np.array_equal(shows(size=(384, 384)), shows(size=(384, 384), crop_pct=1.0))


def test_central_pixels_are_not_resized() -> None:
    array = photo(256, 300)

    assert np.array_equal(central_pixels(array, size=(224, 224)), array[16:240, 38:262])
