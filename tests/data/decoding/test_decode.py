"""Files of every kind become pixels of one kind, or a reason; nothing dangerous is decoded."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mae.data.decoding import header
from mae.data.decoding.decode import BadImage, PixelKind, UnsupportedImage, decode
from mae.data.decoding.header import pillow_faults, read_header, read_kind
from mae.data.sources.source import ArraySource, FolderSource
from mae.data.survey import measure_pixels, survey
from mae.errors import DataError
from tests.images import encoded, image, mixed_folder, photo, png_bomb, rotated_jpeg, uint16

RGB = PixelKind("uint8", 3)
GREY = PixelKind("uint8", 1)
DEEP = PixelKind("uint16", 1)
FLOAT = PixelKind("float32", 1)


def npy(array: NDArray[np.generic]) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def tiff(pixels: NDArray[np.generic], *, extra: tuple[int, ...] = (), rgb: bool = True) -> bytes:
    """Write an uncompressed little-endian TIFF of H W C, as Pillow cannot: any number of bands."""
    H, W, C = pixels.shape
    bits, data = pixels.dtype.itemsize * 8, pixels.tobytes()
    signed = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    tags = [
        (256, W), (257, H), (258, *[bits] * C), (259, 1), (262, 2 if rgb else 1), (273, 8),
        (277, C), (278, H), (279, len(data)), (339, *[signed] * C),
    ]  # fmt: skip
    tags += [(338, *extra)] if extra else []
    start = 8 + len(data)
    after = start + 2 + 12 * len(tags) + 4
    entries, rest = b"", b""
    for tag, *values in sorted(tags):
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            packed, rest = struct.pack("<I", after + len(rest)), rest + packed
        entries += struct.pack("<HHI", tag, 4, len(values)) + packed
    head = b"II*\x00" + struct.pack("<I", start) + data
    return head + struct.pack("<H", len(tags)) + entries + bytes(4) + rest


def pil(data: bytes, mode: str = "RGB") -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as sample:
        pixels = np.asarray(sample.convert(mode))
    return pixels.reshape(*pixels.shape[:2], -1)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"keep_rgb": True}]
)
def test_jpeg_decodes_to_exactly_what_pillow_decodes(options):
    data = encoded(image(61, 83), "JPEG", quality=90, **options)

    pixels = decode(data, kind=RGB)

    assert pixels.shape == (61, 83, 3)
    assert np.array_equal(pixels, pil(data))


def test_cmyk_jpeg_decodes_as_pillow_converts_it():
    data = encoded(image(61, 83).convert("CMYK"), "JPEG", quality=90)

    assert np.array_equal(decode(data, kind=RGB), pil(data))


def test_jpeg_with_bytes_after_its_end_is_read():
    data = encoded(image(61, 83), "JPEG")

    assert np.array_equal(decode(data + b"appended" * 9, kind=RGB), decode(data, kind=RGB))


@pytest.mark.parametrize(
    ("file_format", "mode", "options"),
    [
        ("PNG", "RGB", {}),
        ("PNG", "P", {}),
        ("PNG", "RGBA", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("TIFF", "CMYK", {}),
        ("TIFF", "YCbCr", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("WEBP", "RGB", {"quality": 80}),
        ("WEBP", "RGBA", {"quality": 80}),
        ("BMP", "RGB", {}),
        ("GIF", "P", {}),
    ],
)
def test_colour_of_any_storage_becomes_rgb(file_format, mode, options):
    data = encoded(image(41, 53).convert(mode), file_format, **options)

    assert np.array_equal(decode(data, kind=RGB), pil(data))
    assert read_kind(io.BytesIO(data)) == RGB


@pytest.mark.parametrize(
    ("file_format", "mode"),
    [
        ("PNG", "L"),
        ("PNG", "LA"),
        ("PNG", "1"),
        ("TIFF", "L"),
        ("TIFF", "LA"),
        ("BMP", "L"),
        ("JPEG", "L"),
    ],
)
def test_grey_of_any_storage_is_one_channel(file_format, mode):
    data = encoded(image(41, 53).convert(mode), file_format)

    assert np.array_equal(decode(data, kind=GREY), pil(data, "L"))
    assert read_kind(io.BytesIO(data)) == GREY


def test_palette_with_transparency_is_read_without_a_warning():
    sample = image(41, 53).convert("P")
    opaque = np.asarray(sample.convert("RGB"))
    sample.info["transparency"] = bytes(range(256))

    data = encoded(sample, "PNG")

    assert np.array_equal(decode(data, kind=RGB), opaque)


def test_alpha_is_dropped_not_blended():
    pixels = photo(41, 53, channels=4)

    data = encoded(Image.fromarray(pixels), "PNG")

    assert np.array_equal(decode(data, kind=RGB), pixels[..., :3])


def test_of_an_animation_the_first_frame_is_taken():
    first, second = image(41, 53, seed=1).convert("P"), image(41, 53, seed=2).convert("P")

    data = encoded(first, "GIF", save_all=True, append_images=[second])

    assert np.array_equal(decode(data, kind=RGB), np.asarray(first.convert("RGB")))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_16_bit_grey_is_kept_not_clipped(file_format):
    values = uint16(image(41, 53))
    assert values.max() > 255

    data = encoded(Image.fromarray(values), file_format)

    pixels = decode(data, kind=DEEP)
    assert pixels.dtype == np.uint16
    assert np.array_equal(pixels[..., 0], values)
    assert read_kind(io.BytesIO(data)) == DEEP


def grey_alpha_png(pixels: NDArray[np.uint16], *, interlaced: bool = False) -> bytes:
    """Encode H W 2 of 16 bits by all five filters, as Pillow cannot."""

    def chunk(name: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + checksum

    def filtered(part: NDArray[np.uint16]) -> bytes:
        rows = part.astype(">u2").view(np.uint8).reshape(len(part), -1).astype(int)
        left = np.pad(rows, ((0, 0), (4, 0)))[:, :-4]
        up = np.pad(rows, ((1, 0), (0, 0)))[:-1]
        corner = np.pad(up, ((0, 0), (4, 0)))[:, :-4]
        guess = left + up - corner
        a, b, c = (abs(guess - near) for near in (left, up, corner))
        paeth = np.where((a <= b) & (a <= c), left, np.where(b <= c, up, corner))
        guesses = np.stack([0 * rows, left, up, (left + up) // 2, paeth])
        out = b""
        for y, row in enumerate(rows):
            out += bytes([y % 5]) + ((row - guesses[y % 5, y]) % 256).astype(np.uint8).tobytes()
        return out

    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2),
                  (0, 1, 2, 2), (1, 0, 2, 1)]  # fmt: skip
    body = b"".join(filtered(pixels[y::dy, x::dx].copy()) for y, x, dy, dx in passes)
    H, W, _ = pixels.shape
    head = struct.pack(">IIBBBBB", W, H, 16, 4, 0, 0, interlaced)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("interlaced", [False, True])
def test_grey_png_of_16_bits_with_alpha_keeps_them_in_one_channel(interlaced):
    values = np.random.default_rng(0).integers(0, 65536, (21, 19, 2), dtype=np.uint16)

    data = grey_alpha_png(values, interlaced=interlaced)

    facts = read_header(io.BytesIO(data))
    assert facts.kind == DEEP and facts.left_out == ""
    assert np.array_equal(decode(data, kind=DEEP), values[..., :1])
    with pytest.raises(BadImage, match="PNG that cannot be decoded"):
        decode(data[:-40], kind=DEEP)


def test_grey_png_of_16_bits_with_alpha_leaves_a_grey_folder_grey(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (21, 19, 2), dtype=np.uint16)

    source = write(tmp_path, a_png=DEEP_PNG, b_png=grey_alpha_png(values))

    assert survey(source) == DEEP


def test_float_tiff_is_kept():
    values = photo(41, 53, channels=1).astype(np.float32) / 7 - 3

    data = encoded(Image.fromarray(values[..., 0]), "TIFF")

    assert np.array_equal(decode(data, kind=FLOAT), values)
    assert read_kind(io.BytesIO(data)) == FLOAT


def test_integers_of_32_bits_are_read_only_where_16_hold_them():
    values = uint16(image(41, 53)).astype(np.int32)

    fits = encoded(Image.fromarray(values), "TIFF")
    exceeds = encoded(Image.fromarray(values - 60_000), "TIFF")

    assert np.array_equal(decode(fits, kind=DEEP)[..., 0], values)
    with pytest.raises(BadImage, match="integers from -.*, expected 0 to 65535"):
        decode(exceeds, kind=DEEP)


@pytest.mark.parametrize("bands", [4, 5])
def test_tiff_bands_that_pillow_would_drop_are_kept(bands):
    pixels = photo(11, 13, channels=bands)
    data = tiff(pixels, extra=(0,) * (bands - 3))

    assert np.array_equal(decode(data, kind=PixelKind("uint8", bands)), pixels)


def test_tiff_alpha_is_dropped():
    pixels = photo(11, 13, channels=4)

    assert np.array_equal(decode(tiff(pixels, extra=(2,)), kind=RGB), pixels[..., :3])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_npy_holds_any_number_of_channels(dtype, channels):
    pixels = photo(11, 13, channels=channels).astype(dtype)
    kind = PixelKind(np.dtype(dtype).name, channels)

    for stored in (
        pixels,
        np.asfortranarray(pixels),
        pixels.astype(pixels.dtype.newbyteorder(">")),
    ):
        data = npy(stored)

        decoded = decode(data, kind=kind)

        assert read_kind(io.BytesIO(data)) == kind
        assert decoded.dtype == dtype and decoded.dtype.isnative
        assert np.array_equal(decoded, pixels)


def test_npy_of_two_dimensions_is_grey():
    pixels = photo(11, 13, channels=1)

    assert np.array_equal(decode(npy(pixels[..., 0]), kind=GREY), pixels)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((3, 224, 224), np.uint8), r"\(3, 224, 224\).* array.transpose\(1, 2, 0\)"),
        (np.zeros((3, 48, 40), np.uint8), r"\(3, 48, 40\), which may be C H W, .*: save array.tr"),
        (np.zeros((5, 7, 80), np.uint8), r"shape \(5, 7, 80\), expected H W or H W C"),
        (np.zeros(9, np.uint8), r"shape \(9,\)"),
        (np.zeros((5, 7), np.int64), "type int64"),
        (np.array([[None]]), "type object"),
        (np.full((5, 7), np.nan), "not finite"),
        (np.full((5, 7), 1e300), "not finite"),
        (np.zeros((0, 7), np.uint8), "no pixels"),
    ],
)
def test_npy_that_is_no_image_is_refused(array, reason):
    with pytest.raises(BadImage, match=reason):
        decode(npy(array), kind=FLOAT)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    sample = image(41, 53)
    exif = Image.Exif()
    exif[0x0112] = orientation
    files = {
        "JPEG": rotated_jpeg(sample, orientation),
        "PNG": encoded(sample, "PNG", exif=exif),
        "WEBP": encoded(sample, "WEBP", exif=exif, lossless=True),
        "TIFF": encoded(sample, "TIFF", exif=exif),
    }

    for file_format, data in files.items():
        pixels = decode(data, kind=RGB)

        with Image.open(io.BytesIO(data)) as stored:
            expected = np.asarray(ImageOps.exif_transpose(stored))
        assert np.array_equal(pixels, expected), file_format
        assert pixels.flags.c_contiguous


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\x00\x00",
        b"Exif\x00\x00garbage" * 9,
        b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff",
        b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00\x63\x00\x00\x00"
        b"\x08\x00\x00\x00",  # orientation 99, and a next directory that is this one
    ],
)
def test_damaged_exif_does_not_spoil_the_image(exif):
    sample = image(41, 53)
    plain = encoded(sample, "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif

    pixels = decode(plain[:2] + segment + plain[2:], kind=RGB)

    assert np.array_equal(pixels, decode(plain, kind=RGB))


def test_a_long_reason_ends_with_a_word():
    with pytest.raises(BadImage) as error, pillow_faults("TIFF"):
        raise ValueError("abcdefgh " * 60)

    assert str(error.value).endswith("abcdefgh ...)") and len(str(error.value)) < 240


@pytest.mark.parametrize("pixels", [(30_000, 30_000), (12_000, 12_000)])
def test_a_size_beyond_ours_is_held_against_ours(pixels):
    data = png_bomb(*pixels)

    with pytest.raises(
        UnsupportedImage, match=r"too large \(.*at most 134217728( pixels)?\)"
    ) as error:
        decode(data, kind=RGB)
    assert "178956970" not in str(error.value)


def flipped(data: bytes, *, byte: int) -> bytes:
    return data[:byte] + bytes([data[byte] ^ 0x10]) + data[byte + 1 :]


JPEG = encoded(image(41, 53), "JPEG")
PNG = encoded(image(41, 53), "PNG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"<html>404</html>", "not an image"),
        (b"%PDF-1.7\n", "not an image"),
        (JPEG[:2], "not an image"),
        (JPEG[:100], "JPEG"),
        (JPEG[:-300], "Premature end"),
        (JPEG[:-2], "Premature end"),
        (JPEG[:-2] + bytes(40) + JPEG[-2:], "extraneous bytes"),
        (b"\xff\xd8\xff" + b"text " * 50, "JPEG"),
        (PNG[:20], "PNG"),
        (PNG[:-300], "PNG.*truncated"),
        (flipped(PNG, byte=len(PNG) // 2), "PNG"),
        (encoded(image(41, 53), "WEBP")[:300], "WEBP"),
        (encoded(image(41, 53), "GIF")[:1200], "GIF"),
        (encoded(image(41, 53), "TIFF")[:1200], "TIFF"),
        (encoded(image(41, 53), "BMP")[:1200], "BMP.*truncated"),
        (npy(photo(11, 13))[:-1], "NPY.*EOF"),
        (npy(photo(11, 13))[:40], "NPY"),
    ],
)
def test_a_broken_file_is_a_bad_image_with_its_reason(data, reason):
    with pytest.raises(BadImage, match=reason) as error:
        decode(data, kind=RGB)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "data",
    [
        png_bomb(30_000, 30_000),
        JPEG.replace(struct.pack(">HH", 41, 53), struct.pack(">HH", 65_000, 65_000), 1),
        b"GIF89a" + struct.pack("<HH", 65_000, 65_000) + encoded(image(41, 53), "GIF")[10:],
        encoded(image(41, 53), "BMP").replace(
            struct.pack("<II", 53, 41), struct.pack("<II", 50_000, 50_000), 1
        ),
        npy(np.zeros((1, 1), np.uint8)).replace(b"(1, 1)", b"(99999, 99999)", 1)[:128],
    ],
    ids=["png", "jpeg", "gif", "bmp", "npy"],
)
def test_too_many_pixels_are_refused_before_decoding(data, monkeypatch):
    def decoded(*args, **kwargs):
        raise AssertionError("a decoder saw it")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    monkeypatch.setattr("simplejpeg.decode_jpeg", decoded)

    with pytest.raises(BadImage, match="too large|exceeds limit"):
        decode(data, kind=RGB)
    with pytest.raises(BadImage, match="too large|exceeds limit"):
        read_kind(io.BytesIO(data))


@pytest.mark.parametrize("lossless", [False, True])
def test_webp_of_too_many_pixels_is_refused_before_decoding(lossless, monkeypatch):
    def decoded(*args, **kwargs):
        raise AssertionError("a decoder saw it")

    data = encoded(image(41, 53), "WEBP", lossless=lossless)
    monkeypatch.setattr(header, "MAX_PIXELS", 2000)
    monkeypatch.setattr("PIL.WebPImagePlugin.WebPImageFile.load", decoded)
    monkeypatch.setattr("PIL.WebPImagePlugin.WebPImageFile._get_next", decoded)

    with pytest.raises(BadImage, match=r"too large \(41 x 53"):
        decode(data, kind=RGB)


def test_jpeg_of_an_unusual_sampling_is_left_to_pillow():
    data = bytearray(encoded(image(64, 96), "JPEG", subsampling=0))
    data[data.index(b"\xff\xc0") + 11] = 0x31  # three luma samples to a chroma one
    assert decode(bytes(data), kind=RGB).shape == (64, 96, 3)


def test_damage_that_pillow_would_let_pass_is_found_in_jpeg():
    rng = np.random.default_rng(0)
    start = JPEG.index(b"\xff\xda") + 14
    silent = refused = 0
    for byte in rng.integers(start, len(JPEG) - 2, 200):
        data = flipped(JPEG, byte=int(byte))
        try:
            decode(data, kind=RGB)
        except BadImage:
            refused += 1
            try:
                pil(data)
                silent += 1
            except OSError:
                pass

    assert refused > 20
    assert silent > 0.8 * refused


def test_random_damage_gives_an_image_or_a_reason_and_nothing_else():
    rng = np.random.default_rng(0)
    sample = image(17, 23)
    files = [encoded(sample, f) for f in ("JPEG", "PNG", "GIF", "BMP", "WEBP")] + [
        npy(photo(17, 23))
    ]
    outcomes = {"image": 0, "reason": 0}
    for count in range(600):
        data = bytearray(files[count % len(files)])
        for place in rng.integers(0, min(len(data), 400), 3):
            data[place] = rng.integers(256)
        try:
            pixels = decode(bytes(data[: rng.integers(1, 2 * len(data))]), kind=RGB)
        except BadImage:
            outcomes["reason"] += 1
        else:
            assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
            outcomes["image"] += 1

    assert min(outcomes.values()) > 30


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_every_sound_image_becomes_exactly_the_kind(tmp_path, dtype, channels):
    mixed_folder(tmp_path, count=16, broken=0)
    source, kind = FolderSource(tmp_path), PixelKind(dtype, channels)

    for index in range(len(source)):
        pixels = decode(source.read(index), kind=kind)

        assert pixels.dtype == dtype
        assert pixels.ndim == 3 and pixels.shape[2] == channels
        assert pixels.std() > 0


def test_integers_are_scaled_by_their_full_range():
    eight = np.array([[[0], [1], [128], [255]]], dtype=np.uint8)
    sixteen = np.array([[[0], [257], [32896], [65535]]], dtype=np.uint16)

    assert np.array_equal(decode(eight, kind=DEEP), sixteen)
    assert np.array_equal(decode(sixteen, kind=GREY), eight)
    assert np.array_equal(decode(eight, kind=FLOAT), np.float32(eight / 255))
    assert np.array_equal(decode(sixteen, kind=FLOAT), np.float32(eight / 255))


def test_grey_is_replicated_and_colour_reduced_to_its_luma():
    grey, colour = photo(11, 13, channels=1), photo(11, 13)

    assert np.array_equal(decode(grey, kind=RGB), np.concatenate([grey] * 3, axis=2))
    luma = decode(colour, kind=GREY)
    assert np.array_equal(luma[..., 0], np.asarray(Image.fromarray(colour).convert("L")))
    assert np.allclose(decode(colour, kind=FLOAT), luma / 255, atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize(
    ("pixels", "kind", "reason"),
    [
        (photo(11, 13, channels=5), RGB, "5 channels in a run of 3"),
        (photo(11, 13, channels=3), PixelKind("uint8", 5), "3 channels in a run of 5"),
        (photo(11, 13).astype(np.float32), RGB, "floating-point values in a run of uint8"),
    ],
)
def test_an_image_of_another_kind_is_refused(pixels, kind, reason):
    with pytest.raises(BadImage, match=reason):
        decode(npy(pixels), kind=kind)


def write(folder, **files: bytes) -> FolderSource:
    for name, data in files.items():
        (folder / name.replace("_", ".")).write_bytes(data)
    return FolderSource(folder)


COLOUR, PLAIN = encoded(image(11, 13), "PNG"), encoded(image(11, 13).convert("L"), "PNG")
DEEP_PNG = encoded(Image.fromarray(uint16(image(11, 13))), "PNG")


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"a_png": PLAIN, "b_png": PLAIN}, GREY),
        ({"a_png": PLAIN, "b_png": COLOUR}, RGB),
        ({"a_png": PLAIN, "b_png": DEEP_PNG}, DEEP),
        ({"a_png": COLOUR, "b_png": DEEP_PNG}, PixelKind("uint16", 3)),
        ({"a_png": COLOUR, "b_npy": npy(np.zeros((5, 7)))}, PixelKind("float32", 3)),
        (
            {"a_npy": npy(photo(5, 7, channels=5)), "b_npy": npy(photo(9, 7, channels=5))},
            ("uint8", 5),
        ),
        ({"a_png": b"broken", "b_png": PLAIN}, GREY),
    ],
)
def test_survey_decides_one_kind(tmp_path, files, kind):
    assert survey(write(tmp_path, **files)) == kind


def test_survey_refuses_channels_that_disagree(tmp_path):
    source = write(tmp_path, a_png=COLOUR, b_npy=npy(photo(5, 7, channels=5)))

    named = r"1 of 3 x uint8 \(a\.png\); 1 of 5 x uint8 \(b\.npy\); 1 would be left out"
    with pytest.raises(DataError, match=named):
        survey(source)


def test_most_images_decide_the_channels_and_the_others_are_counted_and_named(tmp_path):
    two = {f"t{i}_npy": npy(photo(5, 7, channels=2)) for i in range(4)}
    source = write(tmp_path, **{f"c{i}_png": COLOUR for i in range(40)}, **two)
    said = []

    assert survey(source, log=said.append) == RGB

    named = "4 of 2 x uint8 (t0.npy, t1.npy, t2.npy, ...)"
    assert said == [f"left out: 4 of 44 images looked at are of another kind: {named}"]
    with pytest.raises(DataError, match="4 would be left out, more than 5%"):
        survey(source, max_bad=0.05)


def test_channels_that_are_asked_for_decide_where_any_image_has_them(tmp_path):
    two = {f"t{i}_npy": npy(photo(5, 7, channels=2)) for i in range(2)}
    source = write(tmp_path, a_png=COLOUR, b_png=PLAIN, **two)

    assert survey(source, channels=2, max_bad=0.5) == ("uint8", 2)
    assert survey(source, channels=3, max_bad=0.5) == survey(source, channels=1, max_bad=0.5) == RGB


def test_most_images_decide_between_integers_and_floats(tmp_path):
    floats = {f"f{i}_npy": npy(np.zeros((5, 7))) for i in range(2)}
    source = write(tmp_path, **{f"c{i}_png": COLOUR for i in range(30)}, **floats)
    said = []

    assert survey(source, log=said.append) == RGB
    assert "2 of 1 x float32 (f0.npy, f1.npy)" in said[0]


def test_survey_of_nothing_readable_says_why(tmp_path):
    source = write(tmp_path, a_jpg=b"", b_png=b"text")

    with pytest.raises(
        DataError, match=r"no readable image in 2: a\.jpg: empty file; b\.png: not an image"
    ):
        survey(source)


def test_survey_looks_at_few_images_evenly_spread():
    class Counting(ArraySource):
        def read(self, index):
            seen.append(index)
            return super().read(index)

    seen: list[int] = []
    source = Counting(np.zeros((10, 3, 5, 3), dtype=np.uint16))

    assert survey(source, limit=4) == PixelKind("uint16", 3)
    assert seen == [0, 2, 5, 7]


def test_survey_reads_no_pixels(tmp_path, monkeypatch):
    mixed_folder(tmp_path, count=16, broken=0)

    def decoded(*args, **kwargs):
        raise AssertionError("pixels were read")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    monkeypatch.setattr("simplejpeg.decode_jpeg", decoded)

    assert survey(FolderSource(tmp_path)) == PixelKind("uint16", 3)


def test_mean_and_std_count_every_image_alike(tmp_path):
    small, large = photo(5, 7, seed=1), photo(40, 30, seed=2)
    source = write(tmp_path, a_npy=npy(small), b_npy=npy(large), c_npy=b"broken")

    mean, std = measure_pixels(source, kind=RGB)

    weights = np.repeat([1 / small[..., 0].size, 1 / large[..., 0].size], [35, 1200])
    values = np.concatenate([small.reshape(-1, 3), large.reshape(-1, 3)]) / 255
    expected = np.average(values, axis=0, weights=weights)
    spread = np.average((values - expected) ** 2, axis=0, weights=weights) ** 0.5
    assert mean == pytest.approx(tuple(expected), abs=1e-12)
    assert std == pytest.approx(tuple(spread), abs=1e-12)


def test_a_channel_that_never_varies_has_std_one():
    source = ArraySource(np.full((2, 3, 5, 1), 51, dtype=np.uint8))

    mean, std = measure_pixels(source, kind=GREY)

    assert mean == pytest.approx((0.2,))
    assert std == (1.0,)


def test_measuring_nothing_readable_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no readable image in 1: a\.jpg: not an image"):
        measure_pixels(write(tmp_path, a_jpg=b"text"), kind=RGB)


def test_every_fault_of_a_mixed_folder_is_found_and_nothing_else(tmp_path):
    broken = mixed_folder(tmp_path, count=40, broken=7)
    source = FolderSource(tmp_path)
    kind = survey(source)

    bad = []
    for index in range(len(source)):
        try:
            decode(source.read(index), kind=kind)
        except BadImage:
            bad.append(source.name(index))

    assert bad == broken
