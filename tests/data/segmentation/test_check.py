"""Bad masks: counted and named in one line before training."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae.data.segmentation.check import Checked, check
from mae.data.segmentation.layout import MaskedPart, find_masked
from mae.data.segmentation.source import IGNORE
from mae.errors import DataError
from mae.progress import Progress
from tests.images import rotated_jpeg
from tests.segments import CLASSES, write_segmented


def opened(root: Path) -> MaskedPart:
    whole = find_masked(root).whole
    assert whole is not None
    return whole()


def checked(root: Path, *, max_bad: float = 1.0) -> Checked:
    return check([opened(root)], max_bad=max_bad, progress=Progress(quiet=True))


def overwrite(mask: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    Image.fromarray(change(np.asarray(Image.open(mask)))).save(mask)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_segmented(tmp_path, count=12)


def test_sound_masks_pass_with_their_classes_and_pixels(folder: Path) -> None:
    found = checked(folder)

    source = found.source(opened(folder))
    masks = [np.asarray(Image.open(folder / "masks" / f"{i}.png")) for i in range(12)]
    assert found.classes == source.mask_classes == CLASSES and found.notes == ()
    assert found.parts[0].pixels.tolist() == [sum((m == k).sum() for m in masks) for k in range(3)]
    assert [source.name(i) for i in (0, 1, 11)] == ["0.png", "1.png", "9.png"]  # bytewise
    assert np.array_equal(source.mask(1), masks[1])


def break_all(folder: Path) -> None:
    """Break nine pairs of twelve, each in its own way, and add a file without its other."""
    masks, images = folder / "masks", folder / "images"
    overwrite(masks / "0.png", lambda mask: mask[:-1])
    overwrite(masks / "1.png", lambda mask: np.where(mask == 1, 7, mask).astype(np.uint8))
    overwrite(masks / "2.png", lambda mask: np.stack([mask] * 3, axis=-1))
    Image.fromarray(np.zeros((1, 4000, 3), np.uint8)).save(images / "3.png")
    Image.fromarray(np.zeros((1, 4000), np.uint8)).save(masks / "3.png")
    overwrite(masks / "4.png", lambda mask: np.full_like(mask, IGNORE))
    (images / "5.png").write_bytes(b"no image")
    (masks / "6.png").write_bytes((masks / "6.png").read_bytes()[:60])
    (masks / "7.png").unlink()
    (images / "8.png").unlink()
    indexed = Image.open(masks / "9.png").convert("P")
    indexed.putpalette([1, 2, 3, 4, 5, 6, 7, 8, 9])
    indexed.save(masks / "9.png")


def test_every_kind_of_fault_is_counted_and_named_in_one_line(folder: Path) -> None:
    break_all(folder)

    (line,) = checked(folder).notes

    for text in (
        "masks: 10 of 12 cannot be used: ",
        "1 image without mask (7.png)",
        "1 mask without image (8.png)",
        "1 mask of another size (0.png: 39 x 56, its image 40 x 56)",
        "1 image longer than 20 to 1 (3.png: 1 x 4000)",
        "1 unreadable image (5.png: not an image (begins with b'no image'))",
        "1 mask of another palette (9.png)",
        "1 mask with a value of no class (1.png: 7)",
        "1 mask with every pixel ignored (4.png)",
        "2 unusable mask (2.png: RGB colours, expected one class number per pixel",
    ):
        assert text in line
    assert checked(folder).source(opened(folder)).name(0) == "10.png"


def test_too_many_faults_are_the_same_line_as_an_error(folder: Path) -> None:
    break_all(folder)

    with pytest.raises(DataError, match=r"10 of 12 cannot be used.*more than 10%.*--max-bad"):
        checked(folder, max_bad=0.1)


def test_palettes_may_be_cut_short_but_not_differ(folder: Path) -> None:
    colours = list(range(9))
    for i in range(12):
        mask = Image.open(folder / "masks" / f"{i}.png").convert("L")
        indexed = Image.frombytes("P", mask.size, mask.tobytes())
        indexed.putpalette(colours if i else [9, *colours[1:]])
        indexed.save(folder / "masks" / f"{i}.png")

    found = checked(folder)

    assert found.notes == (
        "masks: 1 of 12 cannot be used: 1 mask of another palette (0.png); left out",
    )
    assert found.source(opened(folder)).mask(0).max() == 2


def test_without_names_the_classes_are_the_values_and_this_is_said(folder: Path) -> None:
    (folder / "classes.txt").unlink()

    found = checked(folder)

    assert found.classes == ("class 0", "class 1", "class 2")
    assert found.notes[0].startswith("guess: no classes.txt, so 3 classes")


def test_a_value_named_by_a_dash_is_ignored(folder: Path) -> None:
    (folder / "classes.txt").write_text("-\nroof\ntree\n")

    source = checked(folder).source(opened(folder))

    stored = np.asarray(Image.open(folder / "masks" / "0.png"))
    assert source.mask_classes == ("roof", "tree")
    assert np.array_equal(source.mask(0), np.array([IGNORE, 0, 1], np.uint8)[stored])


def test_masks_of_0_and_255_have_a_single_class(folder: Path) -> None:
    (folder / "classes.txt").unlink()
    for mask in (folder / "masks").iterdir():
        overwrite(mask, lambda values: (values > 0).astype(np.uint8) * 255)

    with pytest.raises(DataError, match="1 classes beside 255, which is ignored"):
        checked(folder)


def test_a_turned_photograph_fits_its_upright_mask(folder: Path) -> None:
    (folder / "images" / "0.png").unlink()
    turned = Image.new("RGB", (40, 56), "grey")  # stored upright as 56 x 40, shown as 40 x 56
    (folder / "images" / "0.jpg").write_bytes(rotated_jpeg(turned, 6))

    assert checked(folder).notes == ()


@pytest.mark.parametrize("order", ["splits outside", "splits inside"])
def test_splits_are_found_in_either_order(tmp_path: Path, order: str) -> None:
    for name, count in (("train", 3), ("val", 2)):
        write_segmented(tmp_path / name, count=count)
    if order == "splits inside":
        for name in ("train", "val"):
            for part in ("images", "masks"):
                (tmp_path / part).mkdir(exist_ok=True)
                (tmp_path / name / part).rename(tmp_path / part / name)
            (tmp_path / name / "classes.txt").rename(tmp_path / "classes.txt")
            (tmp_path / name).rmdir()

    layout = find_masked(tmp_path)

    assert layout.whole is None and layout.test_kind == "val"
    parts = [layout.splits[kind]() for kind in ("train", "val")]  # type: ignore[index]
    assert [len(part.images) for part in parts] == [3, 2]
    assert parts[1].classes == CLASSES and parts[1].shown("a") == "val/a"


def test_a_folder_without_masks_says_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()

    with pytest.raises(DataError, match=r"has photos; expected images/ and masks/ \(PNG\)"):
        find_masked(tmp_path)


def test_jpeg_masks_are_refused_since_their_values_are_not_exact(folder: Path) -> None:
    file = io.BytesIO()
    Image.open(folder / "masks" / "0.png").save(file, "JPEG")
    (folder / "masks" / "0.png").write_bytes(file.getvalue())

    assert "0.png: a JPEG, expected PNG, whose values are exact" in checked(folder).notes[0]
