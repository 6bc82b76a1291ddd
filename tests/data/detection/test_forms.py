"""COCO, YOLO and VOC files: the same boxes, in whichever form they are written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae.data.detection.check import Checked, check
from mae.data.detection.files import yaml_names
from mae.data.detection.layout import BoxedPart, find_boxed
from mae.data.detection.source import BoxSource, Instances
from mae.errors import DataError
from mae.progress import Progress
from tests.boxes import CLASSES, SIZE, coco_of, marked, write_coco, write_images, write_voc
from tests.boxes import write_yolo as yolo
from tests.images import rotated_jpeg

FORMS = pytest.mark.parametrize("write", [write_coco, yolo, write_voc])


def checked(parts: list[BoxedPart], *, max_bad: float = 0.0) -> Checked:
    return check(parts, max_bad=max_bad, progress=Progress(quiet=True))


def opened(root: Path, *, max_bad: float = 0.0) -> BoxSource:
    whole = find_boxed(root).whole
    assert whole is not None
    part = whole()
    return checked([part], max_bad=max_bad).source(part)


def rows(found: Instances, names: tuple[str, ...]) -> set[tuple[object, ...]]:
    pairs = zip(found.boxes.tolist(), found.classes.tolist(), strict=True)
    return {(*(round(value, 3) for value in box), names[number]) for box, number in pairs}


@FORMS
def test_every_form_gives_the_boxes_that_were_written(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    source = opened(write(tmp_path, count=11))

    assert [source.name(i) for i in range(11)] == sorted(f"{i}.png" for i in range(11)) or (
        write is write_coco and source.name(10) == "10.png"
    )
    for i in range(11):
        number, names = int(source.file(i)), source.box_classes
        written = {(x0, y0, x1, y1, CLASSES[n]) for x0, y0, x1, y1, n in marked(number)}
        assert rows(source.instances(i), names) == written
        assert source.size(i) == SIZE and not source.instances(i).crowd.any()
    assert source.has_masks == (write is write_coco)


@FORMS
def test_every_form_is_turned_to_coco_and_read_again(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    source = opened(write(tmp_path, count=3))

    again = tmp_path / "again"
    write_images(again / "images", 3)
    (again / "coco.json").write_text(json.dumps(source.coco()))

    same = opened(again)
    assert same.box_classes == source.box_classes
    for i in range(3):
        ours, theirs = source.instances(i), same.instances(i)
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-4)
        assert ours.classes.tolist() == theirs.classes.tolist()
        assert ours.areas == pytest.approx(theirs.areas, rel=1e-6)
        assert np.array_equal(ours.masks(), theirs.masks())


def test_masks_are_drawn_from_polygons_and_run_lengths(tmp_path: Path) -> None:
    write_coco(tmp_path, count=1)
    values = json.loads((tmp_path / "annotations.json").read_text())
    H, W = SIZE
    # The first 3 columns, and a crowd: compressed run lengths of rows 0 to 1 of the last column.
    values["annotations"][0]["segmentation"] = {"counts": [0, 3 * H, (W - 3) * H], "size": [H, W]}
    runs = {"counts": [(W - 1) * H, 2, H - 2], "size": [H, W]}
    values["annotations"][1] |= {"segmentation": runs, "iscrowd": 1}
    (tmp_path / "annotations.json").write_text(json.dumps(values))

    found = opened(tmp_path).instances(0)

    masks = found.masks()
    assert masks.shape == (2, H, W) and found.crowd.tolist() == [False, True]
    assert masks[0].sum() == 3 * H and masks[0, :, :3].all()
    assert masks[1].sum() == 2 and masks[1, :2, -1].all()


def test_without_an_area_it_is_that_of_the_mask(tmp_path: Path) -> None:
    values = coco_of(1)
    for each in values["annotations"]:
        del each["area"]
        each["segmentation"] = [[2, 3, 12, 3, 12, 7.6, 2, 7.6]]  # 10 x 5 pixel centres
    write_images(tmp_path / "images", 1)
    (tmp_path / "a.json").write_text(json.dumps(values))

    assert opened(tmp_path).instances(0).areas.tolist() == [50, 50]


def test_yolo_polygons_are_masks(tmp_path: Path) -> None:
    yolo(tmp_path, count=1)
    H, W = SIZE
    line = f"2 {8 / W} {4 / H} {24 / W} {4 / H} {24 / W} {10 / H} {8 / W} {10 / H}\n"
    (tmp_path / "labels" / "0.txt").write_text(line)

    source = opened(tmp_path)

    found = source.instances(0)
    assert source.has_masks and rows(found, source.box_classes) == {(8, 4, 24, 10, "car")}
    assert found.masks().sum() == 16 * 6 and found.masks()[0, 4:10, 8:24].all()


def test_yolo_boxes_are_fractions_of_the_image_as_it_is_shown(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    stored = Image.fromarray(np.zeros((24, 40, 3), np.uint8))
    (tmp_path / "images" / "a.jpg").write_bytes(rotated_jpeg(stored, 6))  # shown as 40 x 24
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.25 0.5 0.5\n")

    source = opened(tmp_path)

    assert source.size(0) == (40, 24)
    assert source.instances(0).boxes.tolist() == [[6, 0, 18, 20]]


@pytest.mark.parametrize(
    "text",
    [
        "names: [roof, 'tree', \"car\"]\nnc: 3\n",
        "path: .\nnames:\n  0: roof\n  1: tree  # not a bush\n  2: 'car'\nval: x\n",
        "names:\n- roof\n- tree\n- car\nroboflow:\n  license: x\n",
        "names: {0: roof, 1: tree,\n  2: car}\ntrain: a\n",
        "names: ['roof',\n        'tree',\n        'car']\ntrain: [a, b]\n",
    ],
)
def test_names_of_a_yaml_file_are_read_in_each_spelling(text: str) -> None:
    assert yaml_names(text) == dict(enumerate(CLASSES))


def test_a_yaml_file_without_names_has_none() -> None:
    assert yaml_names("nc: 3\n") is None


def test_classes_txt_among_the_labels_has_the_names(tmp_path: Path) -> None:
    yolo(tmp_path, count=2)
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "labels" / "classes.txt").write_text("a\nb\nc\n")

    assert opened(tmp_path).box_classes == ("a", "b", "c")


def splits(root: Path) -> dict[str, int]:
    return {kind: len(part().images) for kind, part in find_boxed(root).splits.items()}


def test_splits_are_found_in_each_form(tmp_path: Path) -> None:
    for kind, count in (("train", 3), ("valid", 2)):
        write_coco(tmp_path / "folders" / kind, count=count)
        yolo(tmp_path / "inside", count=count, part=kind)
    write_images(tmp_path / "files" / "images", 5)
    for kind, count in (("train", 3), ("val", 2)):
        (tmp_path / "files" / f"{kind}.json").write_text(json.dumps(coco_of(count)))
    lists = write_voc(tmp_path / "voc", count=5) / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n1\n2\n")
    (lists / "val.txt").write_text("3  1\n4 -1\n")

    for name in ("folders", "inside", "files", "voc"):
        assert splits(tmp_path / name) == {"train": 3, "val": 2}, name


def test_json_beside_the_images_of_each_split_is_found(tmp_path: Path) -> None:
    for kind in ("train", "valid"):
        write_images(tmp_path / kind, 2)
        (tmp_path / kind / "_annotations.coco.json").write_text(json.dumps(coco_of(2)))

    assert splits(tmp_path) == {"train": 2, "val": 2}


def test_a_folder_without_boxes_says_what_was_expected(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 1)

    with pytest.raises(DataError, match="has images; expected images/ and a COCO .json, images/"):
        find_boxed(tmp_path)


def test_the_fingerprint_follows_boxes_and_images(tmp_path: Path) -> None:
    source = opened(yolo(tmp_path, count=4))
    before = source.fingerprint()

    assert opened(tmp_path).fingerprint() == before
    assert source.take(np.array([0, 1])).fingerprint() != before
    (tmp_path / "labels" / "2.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    assert opened(tmp_path).fingerprint() != before
