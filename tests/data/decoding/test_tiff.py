"""TIFF files of any number of bands, of deep colour, and with channels as pages, by tifffile."""

from __future__ import annotations

import io
import struct
import sys
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from mae.data.decoding import header
from mae.data.decoding.decode import BadImage, PagesKind, PixelKind, UnsupportedImage, decode
from mae.data.decoding.header import read_header, read_kind
from mae.data.sources.source import FolderSource
from mae.data.survey import survey
from tests.images import encoded, image, photo

RGB = PixelKind("uint8", 3)
BANDS = {"photometric": "minisblack", "planarconfig": "contig"}


def tiff(pixels: NDArray[Any], **how: Any) -> bytes:
    """Encode a TIFF as tifffile does."""
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **how)
    return file.getvalue()


def values(channels: int, dtype: str, *, height: int = 11, width: int = 13) -> NDArray[Any]:
    """Draw an image H W C of a type, of values that 8 bits cannot hold."""
    pixels = photo(height, width, channels=channels).astype(np.float64)
    return (pixels / 7 - 3 if dtype.startswith("float") else pixels * 251).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [2, 4, 5, 64])
def test_bands_of_any_number_and_type_are_read_as_stored(channels: int, dtype: str) -> None:
    pixels, kind = values(channels, dtype), PixelKind(dtype, channels)  # type: ignore[arg-type]

    for data in (
        tiff(pixels, **BANDS),
        tiff(pixels, **BANDS, compression="zlib"),
        tiff(pixels, **BANDS, byteorder=">"),
        tiff(pixels, **BANDS, tile=(16, 16)),
        tiff(pixels, **BANDS, bigtiff=True),
        tiff(np.moveaxis(pixels, -1, 0), photometric="minisblack", planarconfig="separate"),
    ):
        assert read_kind(io.BytesIO(data)) == kind
        assert np.array_equal(decode(data, kind=kind), pixels)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("channels", [1, 3])
def test_floats_of_any_width_become_float32(channels: int, dtype: str) -> None:
    pixels = values(channels, dtype)
    how = {"photometric": "rgb"} if channels == 3 else {}
    data = tiff(pixels if channels == 3 else pixels[..., 0], **how)

    kind = PixelKind("float32", channels)

    assert read_kind(io.BytesIO(data)) == kind
    assert np.array_equal(decode(data, kind=kind), pixels.astype(np.float32))


def test_colour_of_16_bits_keeps_them_and_loses_its_alpha() -> None:
    pixels = values(4, "uint16")

    for data in (
        tiff(pixels[..., :3], photometric="rgb"),
        tiff(pixels, photometric="rgb", extrasamples=["unassalpha"]),
    ):
        assert read_kind(io.BytesIO(data)) == PixelKind("uint16", 3)
        assert np.array_equal(decode(data, kind=PixelKind("uint16", 3)), pixels[..., :3])


@pytest.mark.parametrize("dtype", ["int16", "uint32"])
def test_other_integers_are_read_only_where_16_bits_hold_them(dtype: str) -> None:
    pixels = values(5, "uint16") // 3

    data = tiff(pixels.astype(dtype), **BANDS)
    spoilt = tiff((pixels.astype(np.int64) - 9000).astype(dtype), **BANDS)

    kind = PixelKind("uint16", 5)
    assert read_kind(io.BytesIO(data)) == kind
    assert np.array_equal(decode(data, kind=kind), pixels)
    with pytest.raises(BadImage, match="integers from .*, expected 0 to 65535"):
        decode(spoilt, kind=kind)


@pytest.mark.parametrize("how", [{"imagej": True}, {"ome": True}])
def test_pages_that_are_said_to_be_channels_are_channels(how: dict[str, bool]) -> None:
    slices = np.stack([values(5, "float32"), 2 * values(5, "float32")])  # Z H W C
    flat = tiff(np.moveaxis(slices[0], -1, 0), metadata={"axes": "CYX"}, **how)
    deep = tiff(np.moveaxis(slices, -1, 1), metadata={"axes": "ZCYX"}, **how)

    for data in (flat, deep):
        assert read_kind(io.BytesIO(data)) == PixelKind("float32", 5)
        assert np.array_equal(decode(data, kind=PixelKind("float32", 5)), slices[0])


def test_of_an_ome_file_that_counts_slices_first_the_right_pages_are_taken() -> None:
    stack = np.moveaxis(values(6, "uint16"), -1, 0).reshape(3, 2, 11, 13)  # C Z H W

    data = tiff(stack, ome=True, metadata={"axes": "CZYX"})

    expected = np.moveaxis(stack[:, 0], 0, -1)
    assert np.array_equal(decode(data, kind=PixelKind("uint16", 3)), expected)


def test_pages_that_nobody_calls_channels_are_channels_only_when_asked_for() -> None:
    pixels = values(5, "float32")
    data = tiff(np.moveaxis(pixels, -1, 0))

    assert read_header(io.BytesIO(data)).left_out == "frames or pages after the first"
    assert read_kind(io.BytesIO(data)) == PixelKind("float32", 1)
    assert np.array_equal(decode(data, kind=PixelKind("float32", 1)), pixels[..., :1])
    asked = read_kind(io.BytesIO(data), channels=5)
    assert isinstance(asked, PagesKind) and asked == PixelKind("float32", 5)
    assert np.array_equal(decode(data, kind=asked), pixels)
    assert read_kind(io.BytesIO(data), channels=4) == PixelKind("float32", 1)
    with pytest.raises(UnsupportedImage, match="1 channels in a run of 5"):
        decode(data, kind=PixelKind("float32", 5))


def pages(*planes: NDArray[Any], **how: Any) -> bytes:
    """Encode one page after another, of which nothing is said."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for plane in planes:
            writer.write(plane, metadata=None, **how)
    return file.getvalue()


@pytest.mark.parametrize("count", [2, 3, 4])
def test_of_grey_pages_the_first_is_the_image_unless_their_number_is_asked_for(count: int) -> None:
    shades = (10, 128, 240, 77)[:count]
    data = pages(*(np.full((11, 13), shade, np.uint8) for shade in shades))

    pixels = decode(data, kind=RGB)
    asked = read_kind(io.BytesIO(data), channels=count)

    assert pixels.reshape(-1, 3).tolist() == [[10, 10, 10]] * 143
    assert decode(data, kind=asked).reshape(-1, count).tolist() == [list(shades)] * 143


def palette_pages() -> bytes:
    images = [image(11, 13, seed=seed).convert("P") for seed in range(3)]
    return encoded(images[0], "TIFF", save_all=True, append_images=images[1:])


def bilevel_pages(compression: str) -> bytes:
    images = [image(11, 13, seed=seed).convert("1") for seed in range(3)]
    how = {"save_all": True, "append_images": images[1:], "compression": compression}
    return encoded(images[0], "TIFF", **how)


def stack(**how: Any) -> bytes:
    return tiff(values(3, "uint8").transpose(2, 0, 1), photometric="minisblack", **how)


@pytest.mark.parametrize(
    "data",
    [
        palette_pages(),
        bilevel_pages("raw"),
        bilevel_pages("group4"),
        pages(*(values(1, "uint8", width=13 + i)[..., 0] for i in range(3))),
        pages(*(values(1, dtype)[..., 0] for dtype in ("uint8", "uint8", "uint16"))),
        stack(imagej=True, metadata={"axes": "ZYX"}),
        stack(imagej=True, metadata={"axes": "TYX"}),
        stack(ome=True, metadata={"axes": "ZYX"}),
        stack(metadata={"axes": "TYX"}),
    ],
    ids="palette bilevel group4 sizes types slices times ome-slices shaped-times".split(),
)
def test_pages_that_cannot_be_channels_are_none_even_if_asked_for(data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as sample:
        first = np.asarray(sample.convert("RGB"))

    for channels in (None, 3):
        kind = read_kind(io.BytesIO(data), channels=channels)
        assert not isinstance(kind, PagesKind)
    assert np.array_equal(decode(data, kind=RGB), first)
    assert np.array_equal(decode(data, kind=PagesKind("uint8", 3)), first)


def test_a_file_that_has_to_be_read_otherwise_says_which_command_installs_the_reader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)

    with pytest.raises(UnsupportedImage, match=r"pip install 'mae-vision\[tiff\]'"):
        decode(tiff_of_five(), kind=PixelKind("float32", 5))
    with pytest.raises(UnsupportedImage, match=r"pip install 'mae-vision\[tiff\]'"):
        read_kind(io.BytesIO(tiff_of_five()))


def tiff_of_five() -> bytes:
    return tiff(values(5, "float32"), **BANDS)


def test_lzw_says_which_command_installs_its_reader() -> None:
    compression = struct.pack("<HHIH", 259, 3, 1, 1)
    assert compression in tiff_of_five()

    data = tiff_of_five().replace(compression, struct.pack("<HHIH", 259, 3, 1, 5))

    with pytest.raises(UnsupportedImage, match="LZW: pip install imagecodecs"):
        decode(data, kind=PixelKind("float32", 5))


def test_plain_files_need_no_tifffile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)

    assert decode(encoded(image(11, 13), "TIFF"), kind=PixelKind("uint8", 3)).shape == (11, 13, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_bands_is_applied(orientation: int) -> None:
    pixels = values(5, "uint16")

    data = tiff(pixels, **BANDS, extratags=[(274, 3, 1, orientation, True)])

    flips = pixels[:, ::-1] if orientation in (2, 7, 4, 5) else pixels
    turns = {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}[orientation]
    assert np.array_equal(decode(data, kind=PixelKind("uint16", 5)), np.rot90(flips, turns))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_breaks_the_image(bad: float) -> None:
    pixels = values(5, "float32")
    pixels[3, 4, 2] = bad

    with pytest.raises(BadImage, match="not finite"):
        decode(tiff(pixels, **BANDS), kind=PixelKind("float32", 5))


def test_a_file_of_few_bytes_that_claims_many_is_refused_unread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def decoded(*args: object, **kwargs: object) -> None:
        raise AssertionError("a decoder saw it")

    monkeypatch.setattr("tifffile.TiffPage.asarray", decoded)
    data = tiff(values(64, "float32"), **BANDS)
    for tag, size in ((256, 13), (257, 11)):  # width and height
        entry = struct.pack("<HHI", tag, 4, 1)
        assert entry + struct.pack("<I", size) in data
        data = data.replace(entry + struct.pack("<I", size), entry + struct.pack("<I", 12287))

    with pytest.raises(BadImage, match="too large"):
        decode(data, kind=PixelKind("float32", 64))


def test_more_channels_than_sixty_four_are_refused() -> None:
    with pytest.raises(BadImage, match="65 channels, expected at most 64"):
        read_kind(io.BytesIO(tiff(values(65, "uint8"), **BANDS)))


def test_random_damage_gives_an_image_or_a_reason_and_nothing_on_stderr(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(header, "MAX_PIXELS", 10_000)
    rng = np.random.default_rng(0)
    files = [
        tiff_of_five(),
        tiff(np.moveaxis(values(5, "float32"), -1, 0), imagej=True, metadata={"axes": "CYX"}),
        tiff(values(3, "uint16"), photometric="rgb", compression="zlib"),
    ]
    outcomes = {"image": 0, "reason": 0}
    for count in range(300):
        data = bytearray(files[count % len(files)])
        for place in rng.integers(0, min(len(data), 400), 2):
            data[place] = rng.integers(256)
        try:
            decode(bytes(data[: rng.integers(9, 2 * len(data))]), kind=PixelKind("float32", 5))
        except BadImage as error:
            assert "\n" not in str(error)
            outcomes["reason"] += 1
        else:
            outcomes["image"] += 1

    assert min(outcomes.values()) > 15
    assert capfd.readouterr() == ("", "")


def test_a_folder_of_bands_is_surveyed_by_its_heads(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.tif").write_bytes(tiff_of_five())

    def decoded(*args: object, **kwargs: object) -> None:
        raise AssertionError("pixels were read")

    monkeypatch.setattr("tifffile.TiffPage.asarray", decoded)

    assert survey(FolderSource(tmp_path)) == PixelKind("float32", 5)
