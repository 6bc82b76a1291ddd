"""What libtiff says of a file is said of that file, and never on stderr."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest
from PIL import Image

from mae.data.decoding import libtiff
from mae.data.decoding.decode import BadImage, PixelKind, UnsupportedImage, decode
from tests.images import encoded, image

RGB = PixelKind("uint8", 3)
SAMPLE = image(61, 83)


def spoilt(data: bytes, place: int, content: bytes) -> bytes:
    return data[:place] + content + data[place + len(content) :]


FAX = spoilt(encoded(SAMPLE.convert("1"), "TIFF", compression="group4"), 100, b"\1\2\3\4\5")
LZW = spoilt(encoded(SAMPLE, "TIFF", compression="tiff_lzw"), 300, bytes(range(40)))


@pytest.mark.parametrize(("data", "said"), [(FAX, "Fax4Decode: Bad code word"), (LZW, "LZW|code")])
def test_damage_that_libtiff_speaks_of_is_the_reason_and_nothing_is_printed(
    data: bytes, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BadImage, match=rf"^TIFF that cannot be decoded \(.*({said})") as error:
        decode(data, kind=RGB)

    assert not isinstance(error.value, UnsupportedImage)
    assert capfd.readouterr() == ("", "")


def test_a_damaged_tag_that_changes_no_pixel_is_a_warning(
    capfd: pytest.CaptureFixture[str],
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 1
    sound = encoded(SAMPLE, "TIFF", compression="tiff_lzw", exif=exif)
    entry = sound.index(b"\x12\x01\x03\0\1\0\0\0")
    said: list[str] = []

    pixels = decode(spoilt(sound, entry + 8, b"\x63\0"), kind=RGB, warn=said.append)

    assert np.array_equal(pixels, np.asarray(SAMPLE))
    assert len(said) == 1 and said[0].startswith("TIFF with a damaged tag (")
    assert 'Bad value 99 for "Orientation" tag' in said[0]
    assert capfd.readouterr() == ("", "")


def test_each_thread_hears_of_its_own_file_alone() -> None:
    heard: dict[int, list[str]] = {}
    barrier = threading.Barrier(4)

    def look(number: int) -> None:
        barrier.wait(timeout=20)
        for _ in range(20):
            with libtiff.messages_caught() as messages:
                if number % 2:
                    with Image.open(io.BytesIO(FAX)) as sample:
                        sample.load()
            heard.setdefault(number, []).extend(messages)

    threads = [threading.Thread(target=look, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {number: len(lines) > 0 for number, lines in heard.items()} == {
        0: False, 1: True, 2: False, 3: True,
    }  # fmt: skip


def test_what_another_part_of_the_process_opens_is_printed_as_before(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with libtiff.messages_caught():
        pass

    with Image.open(io.BytesIO(FAX)) as sample:
        sample.load()

    assert "Fax4Decode: Bad code word" in capfd.readouterr().err
