"""Bad boxes: counted and named in one line before training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mae.data.detection.check import Checked, check
from mae.data.detection.layout import BoxedPart, find_boxed
from mae.errors import DataError
from mae.progress import Progress
from tests.boxes import CLASSES, SIZE, coco_of, marked, write_images, write_voc
from tests.boxes import write_yolo as yolo

H, W = SIZE


def opened(root: Path) -> BoxedPart:
    whole = find_boxed(root).whole
    assert whole is not None
    return whole()


def checked(root: Path, *, max_bad: float = 1.0, classes: Sequence[str] | None = None) -> Checked:
    return check([opened(root)], max_bad=max_bad, progress=Progress(quiet=True), classes=classes)


def write(root: Path, values: dict[str, Any]) -> Path:
    write_images(root / "images", 12)
    (root / "annotations.json").write_text(json.dumps(values))
    return root


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Twelve images and 24 boxes, with one fault of each kind."""
    values = coco_of(12)
    images, boxes = values["images"], values["annotations"]
    boxes[0]["bbox"] = [5, 6, 0, 9]
    boxes[1]["bbox"] = [W + 1, 3, 5, 5]
    boxes[2]["bbox"] = [W - 10, 3, 25, 5]
    boxes[3]["category_id"] = 99
    boxes[4]["image_id"] = 7
    boxes[5]["bbox"] = [1, 2, 3]
    boxes[6]["segmentation"] = {"counts": [3], "size": [H, W]}
    boxes[7]["bbox"] = [float("nan"), 2, 3, 4]
    images[5]["id"] = images[6]["id"]
    images[7]["file_name"] = "gone.png"
    images[8]["width"] = W + 3
    images.append({**images[9], "id": 1000})
    write(tmp_path, values)
    (tmp_path / "images" / "10.png").write_bytes(b"no image")
    return tmp_path


def test_every_kind_of_fault_is_counted_and_named_in_one_line(broken: Path) -> None:
    found = checked(broken)

    gaps, line, *_ = found.notes
    assert gaps == ("classes: 3 category ids with gaps, 3 to 11, are numbered 0 to 2 in that order")
    for text in (
        "2 image whose id is used twice (5.png: 60; 6.png: 60)",
        "1 image listed twice (9.png: id 1000)",
        "1 listed image without file (gone.png)",
        "1 image of another size than stated (8.png: 40 x 56, stated 40 x 59)",
        "1 unreadable image (10.png: not an image (begins with b'no image'))",
        "3 box of an image that is not listed (image id 7; image id 50 and 1 more)",
        "1 box that is not four numbers (2.png: [1, 2, 3])",
        "2 box of zero size (0.png: 5 6 5 15; 3.png: nan 2 nan 6)",
        "1 box outside its image (0.png: 57 3 62 8)",
        "1 box reaching beyond its image, cut (1.png: 46 3 71 8)",
        "1 box of an unknown class (1.png: 99)",
        "1 mask that cannot be drawn (3.png: ",
        "; left out, but for boxes that are cut",
    ):
        assert text in line
    assert "10 of 16 boxes" in line and "6 of 13 images are wrong" in line
    part = opened(broken)
    source = found.source(part)
    assert [source.name(i) for i in range(len(source))] == [
        f"{i}.png" for i in (0, 1, 2, 3, 4, 9, 11)
    ]
    assert source.instances(1).boxes.tolist() == [[46, 3, 56, 8]]


def test_too_many_faults_are_refused_with_all_of_them(broken: Path) -> None:
    with pytest.raises(DataError, match=r"boxes: 10 of 16 boxes and 6 of 13 .*raise --max-bad"):
        checked(broken, max_bad=0.4)


def test_missing_images_are_not_hidden_by_many_boxes(tmp_path: Path) -> None:
    write(tmp_path, coco_of(12))
    for i in range(5):
        (tmp_path / "images" / f"{i}.png").unlink()

    with pytest.raises(DataError, match="0 of 14 boxes and 5 of 12 images"):
        checked(tmp_path, max_bad=0.4)


def test_sound_boxes_are_counted_by_class_and_size(tmp_path: Path) -> None:
    values = coco_of(6, masks=False)
    for each, area in zip(values["annotations"], (1023, 1024, 9215, 9216, 1, 9e9), strict=False):
        each["area"] = area
    values["annotations"][11]["iscrowd"] = 1
    found = checked(write(tmp_path, values))

    # COCO: small below 32 x 32, large from 96 x 96.
    counts = dict(zip(found.classes, found.parts[0].counts.tolist(), strict=True))
    numbers = [each.number for i in range(6) for each in marked(i)]
    expected = {name: [0, 0, 0] for name in CLASSES}
    ranges = [0, 1, 1, 2, 0, 2, 0, 0, 0, 0, 0]
    for number, place in zip(numbers, ranges, strict=False):
        expected[CLASSES[number]][place] += 1
    assert counts == expected
    assert not found.has_masks and found.short_side == H


def test_images_without_boxes_are_kept_and_counted(tmp_path: Path) -> None:
    values = coco_of(4)
    values["annotations"] = [a for a in values["annotations"] if a["image_id"] != 10]

    found = checked(write(tmp_path, values))

    assert "boxes: 1 of 4 images have none; they are background" in found.notes
    source = found.source(opened(tmp_path))
    assert len(source) == 4 and source.instances(1).boxes.shape == (0, 4)
    assert source.instances(1).masks().shape == (0, H, W)


def test_no_boxes_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no boxes that can be used"):
        checked(write(tmp_path, {**coco_of(4), "annotations": []}))


def test_classes_of_a_detector_number_those_of_the_data(tmp_path: Path) -> None:
    write(tmp_path, coco_of(3))

    found = checked(tmp_path, classes=("sky", "car", "tree", "roof"))

    number = marked(0)[0].number
    instances = found.source(opened(tmp_path)).instances(0)
    assert instances.classes[0] == {"roof": 3, "tree": 2, "car": 1}[CLASSES[number]]


def test_more_classes_than_the_detector_has_are_refused(tmp_path: Path) -> None:
    write(tmp_path, coco_of(3))

    with pytest.raises(DataError, match="2 classes are unknown: car, tree; expected roof"):
        checked(tmp_path, classes=("roof",))


def test_a_part_of_the_masks_is_said_and_none_is_used(tmp_path: Path) -> None:
    values = coco_of(3)
    del values["annotations"][1]["segmentation"]

    found = checked(write(tmp_path, values))

    assert "guess: 1 of 6 boxes have no mask, so boxes alone are used" in found.notes
    assert found.source(opened(tmp_path)).instances(0).segmentations == (None, None)


def test_yolo_numbers_without_names_are_a_guess_and_lines_are_checked(tmp_path: Path) -> None:
    yolo(tmp_path, count=4)
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "labels" / "1.txt").write_text("0 0.5 0.5 0.1\n")
    (tmp_path / "labels" / "2.txt").unlink()
    (tmp_path / "labels" / "9.txt").write_text("0 0.5 0.5 0.1 0.1\n")

    found = checked(tmp_path)

    guess, line, empty = found.notes
    assert guess == "guess: no names of classes, so 2, class 0 to 1"
    assert "1 labels without image (9.txt)" in line
    assert "(1.png: 1.txt: 4 numbers in a line, expected class and x y w h)" in line
    assert empty == "boxes: 1 of 3 images have none; they are background"


def test_voc_files_are_checked(tmp_path: Path) -> None:
    write_voc(tmp_path, count=4, images="images")
    (tmp_path / "Annotations" / "1.xml").write_text("<annotation><object>")
    (tmp_path / "Annotations" / "2.xml").unlink()
    (tmp_path / "images" / "3.png").unlink()

    found = checked(tmp_path)

    guess, line, *_ = found.notes
    assert guess.startswith("guess: no classes.txt, so 2 classes, by the names in the files")
    assert (
        "boxes: 0 of 2 boxes and 3 of 4 images are wrong: 1 listed image without file (3)" in line
    )
    assert "1 image without .xml (2.png)" in line
    assert "1 image with an unusable annotation (1.png: 1.xml is no VOC annotation (" in line


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"images": []}, "is no COCO file of boxes .KeyError"),
        ({**coco_of(1), "categories": [{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]}, "of id 3"),
        ({**coco_of(1), "categories": [{"id": 3, "name": "a"}, {"id": 4, "name": "a"}]}, "name a"),
    ],
)
def test_files_that_cannot_be_read_are_refused(
    tmp_path: Path, values: dict[str, Any], expected: str
) -> None:
    with pytest.raises(DataError, match=expected):
        opened(write(tmp_path, values))
