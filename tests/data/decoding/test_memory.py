"""A large image takes little more memory than its own pixels, whatever is done to them."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae.config.model import PixelDtype
from mae.data.audit.channel_stats import ChannelSums
from mae.data.audit.report import DatasetReport
from mae.data.decoding.decode import PixelKind, decode
from mae.data.decoding.strips import row_strips
from mae.data.sources.source import FolderSource
from mae.data.survey import measure_pixels
from mae.report.contact_sheet import thumbnail
from tests.images import encoded, photo

H, W = 4003, 3001
RGB, GREY = PixelKind("uint8", 3), PixelKind("uint8", 1)
DEEP, FLOAT = PixelKind("uint16", 1), PixelKind("float32", 3)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel is asked")


def peak_of(work: Callable[[], object]) -> int:
    """Give the bytes that a piece of work takes at most."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Files of one large image that compresses well, by what they are."""
    root = tmp_path_factory.mktemp("large")
    tile = photo(40, 50)
    pixels = np.tile(tile, (H // 40 + 1, W // 50 + 1, 1))[:H, :W]
    colour, grey = Image.fromarray(pixels), Image.fromarray(pixels[..., 0])
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "colour": encoded(colour, "PNG", compress_level=1),
        "turned": encoded(colour, "PNG", compress_level=1, exif=exif),
        "grey": encoded(grey, "PNG", compress_level=1),
        "palette": encoded(colour.quantize(64), "PNG", compress_level=1),
        "deep": encoded(deep, "PNG", compress_level=1),
        "jpeg": encoded(colour, "JPEG"),
        "lzw": encoded(colour, "TIFF", compression="tiff_lzw"),
    }
    for name, data in files.items():
        (root / name).mkdir()
        ending = {"jpeg": "jpg", "lzw": "tif"}.get(name, "png")
        (root / name / f"a.{ending}").write_bytes(data)
    yield {name: root / name for name in files}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param("colour", RGB, marks=pytest.mark.slow), ("turned", RGB), ("palette", RGB),
        ("grey", RGB), ("grey", GREY), ("deep", DEEP), ("jpeg", RGB), ("lzw", RGB),
        pytest.param("colour", FLOAT, marks=pytest.mark.slow), ("deep", RGB),
    ],
)  # fmt: skip
def test_an_image_is_looked_at_in_under_three_times_its_pixels(
    large: dict[str, Path], name: str, kind: PixelKind
) -> None:
    source = FolderSource(large[name])

    def look() -> None:
        pixels = DatasetReport(source=source, kind=kind).add(0)
        assert pixels is not None
        thumbnail(pixels)

    assert peak_of(look) < 3 * H * W * kind.channels * np.dtype(kind.dtype).itemsize


def test_colour_becomes_grey_in_little_more_than_its_own_pixels(large: dict[str, Path]) -> None:
    data = FolderSource(large["colour"]).read(0)

    assert peak_of(lambda: decode(data, kind=GREY)) < 2.6 * H * W * 3


@pytest.mark.parametrize(("name", "kind"), [("grey", GREY), ("deep", DEEP), ("colour", RGB)])
def test_mean_and_std_are_measured_in_under_three_times_the_pixels(
    large: dict[str, Path], name: str, kind: PixelKind
) -> None:
    source = FolderSource(large[name])

    used = peak_of(lambda: measure_pixels(source, kind=kind))

    assert used < 3 * H * W * kind.channels * np.dtype(kind.dtype).itemsize


@pytest.mark.parametrize(("dtype", "channels"), [("uint8", 1), ("uint8", 3), ("float32", 5)])
def test_measuring_in_parts_gives_what_numpy_gives_at_once(
    tmp_path: Path, dtype: PixelDtype, channels: int
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1501, 1407, channels)).astype(dtype)
    np.save(tmp_path / "a.npy", pixels)

    mean, std = measure_pixels(FolderSource(tmp_path), kind=PixelKind(dtype, channels))

    planes = np.array(pixels.reshape(-1, channels).T, dtype=np.float64, order="C")
    planes /= 255 if dtype == "uint8" else 1
    exact = planes.mean(axis=1)
    assert mean == tuple(exact.tolist())
    assert std == tuple(np.sqrt(np.square(planes).mean(axis=1) - exact**2).tolist())


@pytest.mark.parametrize("kind", [RGB, GREY, PixelKind("uint16", 3), FLOAT])
@pytest.mark.parametrize("stored", ["uint8", "uint16"])
def test_a_large_image_is_converted_as_each_of_its_rows_is(stored: str, kind: PixelKind) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1103, 701, 3)).astype(stored)
    assert len(list(row_strips(pixels.shape))) > 2

    whole = decode(pixels, kind=kind)

    rows = [decode(row[None], kind=kind) for row in pixels]
    assert whole.dtype == kind.dtype and np.array_equal(whole, np.concatenate(rows))


def test_sums_of_a_large_image_of_floats_are_numpys() -> None:
    pixels = np.random.default_rng(0).normal(7, 0.1, (1103, 701, 2)).astype(np.float32)
    sums = ChannelSums(2)

    own = sums.add(pixels)

    exact = pixels.astype(np.float64)
    assert own == pytest.approx(exact.std(axis=(0, 1)), rel=1e-12)
    assert sums.mean == pytest.approx(exact.mean(axis=(0, 1)), rel=1e-14)


def test_a_large_npy_is_no_exception(tmp_path: Path) -> None:
    file = io.BytesIO()
    np.save(file, np.zeros((H, W, 3), np.uint8))
    data = file.getvalue()

    assert peak_of(lambda: decode(data, kind=RGB)) < 1.5 * H * W * 3
