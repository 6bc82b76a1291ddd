"""JPEG: damage that reaches no pixel is a warning, damage in the scan a reason, on every road."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mae.config.run import AugmentConfig
from mae.data.batching.batch import BatchPlan, evaluation_batch, training_batch
from mae.data.decoding.decode import BadImage, PixelKind, UnsupportedImage, decode
from mae.data.sources.source import FolderSource
from tests.images import encoded, image, rotated_jpeg

RGB = PixelKind("uint8", 3)
SAMPLE = image(61, 83)
PLAIN = encoded(SAMPLE, "JPEG", quality=90)
PROGRESSIVE = encoded(SAMPLE, "JPEG", quality=90, progressive=True)
CMYK = encoded(SAMPLE.convert("CMYK"), "JPEG", quality=90)
TURNED = rotated_jpeg(SAMPLE, 6)


def pil(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as sample:
        return np.asarray(sample.convert("RGB"))


def read(data: bytes, **how: Any) -> tuple[NDArray[Any], list[str]]:
    said: list[str] = []
    return decode(data, kind=RGB, warn=said.append, **how), said


def with_junk(data: bytes) -> bytes:
    place = data.index(b"\xff\xdb")
    return data[:place] + bytes(5) + data[place:]


def without_a_chunk(mode: str = "RGB") -> bytes:
    """Leave out the first of several chunks of a profile."""
    profile = bytes(range(256)) * 600
    data = encoded(SAMPLE.convert(mode), "JPEG", quality=90, icc_profile=profile)
    start = data.index(b"ICC_PROFILE\0") - 4
    return data[:start] + data[start + 2 + struct.unpack_from(">H", data, start + 2)[0] :]


def with_version_of_jfif(data: bytes) -> bytes:
    place = data.index(b"JFIF\0") + 5
    return data[:place] + b"\7" + data[place + 1 :]


def with_a_scan_header_of_its_own(data: bytes) -> bytes:
    place = data.index(b"\xff\xda")
    end = place + 2 + struct.unpack_from(">H", data, place + 2)[0]
    return data[: end - 3] + bytes(3) + data[end:]


@pytest.mark.parametrize(
    ("data", "whole"),
    [
        (with_junk(PLAIN), PLAIN),
        (with_junk(PROGRESSIVE), PROGRESSIVE),
        (with_junk(CMYK), CMYK),
        (with_version_of_jfif(PLAIN), PLAIN),
        (with_a_scan_header_of_its_own(PLAIN), PLAIN),
        (without_a_chunk(), PLAIN),
        (without_a_chunk("CMYK"), CMYK),
        (without_a_chunk("L"), encoded(SAMPLE.convert("L"), "JPEG", quality=90)),
    ],
    ids="junk progressive cmyk jfif scan profile cmyk-profile grey-profile".split(),
)
def test_damage_that_reaches_no_pixel_is_read_with_a_warning(data: bytes, whole: bytes) -> None:
    pixels, said = read(data)

    assert np.array_equal(pixels, pil(whole)) and np.array_equal(pil(data), pil(whole))
    assert len(said) == 1 and said[0].startswith("JPEG with a damaged header (")
    assert read(whole)[1] == []


def test_a_damaged_head_does_not_hide_its_orientation_or_keep_it_from_being_shrunk() -> None:
    turned, _ = read(with_junk(TURNED))
    halved, said = read(with_junk(PLAIN), shrink=2)

    assert np.array_equal(turned, read(TURNED)[0])
    assert np.array_equal(halved, read(PLAIN, shrink=2)[0]) and halved.shape == (31, 42, 3)
    assert said


@pytest.mark.parametrize("data", [PLAIN, PROGRESSIVE, CMYK, TURNED], ids="abcd")
@pytest.mark.parametrize("spoil", [lambda data: data, with_junk], ids=["alone", "junk"])
def test_a_fifth_of_a_file_zeroed_is_damage_on_every_road(data: bytes, spoil: Any) -> None:
    count = len(data)
    zeroed = data[: count // 2] + bytes(count // 5) + data[count // 2 + count // 5 :]

    with pytest.raises(BadImage, match="JPEG that cannot be decoded") as error:
        read(spoil(zeroed))
    assert not isinstance(error.value, UnsupportedImage)


def test_damage_of_cmyk_that_pillow_would_let_pass_is_found() -> None:
    rng = np.random.default_rng(0)
    start = CMYK.index(b"\xff\xda") + 16
    refused = silent = 0
    for byte in rng.integers(start, len(CMYK) - 2, 200):
        spoilt = CMYK[:byte] + bytes([CMYK[byte] ^ 0x10]) + CMYK[byte + 1 :]
        try:
            read(spoilt)
        except BadImage:
            refused += 1
            silent += pil(spoilt).shape == (61, 83, 3)

    assert silent == refused > 10


def with_frame(data: bytes, *, marker: int = 0xC0, bits: int = 8, components: int = 3) -> bytes:
    place = data.index(b"\xff\xc0")
    changed = bytearray(data)
    changed[place + 1], changed[place + 4], changed[place + 9] = marker, bits, components
    return bytes(changed)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (with_frame(PLAIN, marker=0xC1, bits=12), "JPEG of 12 bits, expected 8"),
        (with_frame(PLAIN, marker=0xC5), "hierarchical JPEG"),
        (with_frame(PLAIN, marker=0xF7), "JPEG-LS"),
        (with_frame(PLAIN, components=2), "JPEG of 2 components"),
    ],
)
def test_a_jpeg_of_another_process_is_sound(data: bytes, reason: str) -> None:
    with pytest.raises(UnsupportedImage, match=reason):
        read(data)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_batch_names_what_was_read_with_a_warning_and_replaces_nothing(
    tmp_path: Path, *, scaled: bool
) -> None:
    for number in range(6):
        (tmp_path / f"{number}.jpg").write_bytes(with_junk(PLAIN) if number == 4 else PLAIN)
    source = FolderSource(tmp_path)
    plan = BatchPlan(
        source=source, kind=RGB, size=(12, 20), grid=(3, 5), batch=6, seed=3,
        augment=AugmentConfig(scaled_decode=scaled),
    )  # fmt: skip

    batch = training_batch(plan, 0)
    evaluated = evaluation_batch(source, range(6), kind=RGB, size=(12, 20))

    for made in (batch, evaluated):
        assert made.bad == () and [found.name for found in made.warned] == ["4.jpg"]
        assert "extraneous bytes" in made.warned[0].reason
    assert [len(part.warned) for part in batch.split(2)] == [0, 0, 0]
