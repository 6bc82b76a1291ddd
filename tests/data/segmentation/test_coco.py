"""COCO annotations against masks worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae.data.segmentation.coco import (
    instance_inside,
    polygon_inside,
    read_coco,
    run_lengths,
    runs_inside,
)
from mae.data.segmentation.layout import find_masked
from mae.data.segmentation.source import IGNORE
from mae.errors import DataError


def drawn(inside: object) -> list[str]:
    return ["".join(".#"[int(v)] for v in row) for row in np.asarray(inside)]


def test_a_rectangle_of_whole_pixels_is_exactly_its_pixels() -> None:
    inside = polygon_inside([2, 1, 5, 1, 5, 3, 2, 3], size=(4, 7))

    assert drawn(inside) == [".......", "..###..", "..###..", "......."]


def test_a_triangle_holds_the_pixels_whose_centre_it_covers() -> None:
    # The hypotenuse is x + y = 4: centres (column + 1/2) + (row + 1/2) < 4.
    inside = polygon_inside([0, 0, 4, 0, 0, 4], size=(4, 5))

    assert drawn(inside) == ["###..", "##...", "#....", "....."]


def test_a_polygon_that_leaves_the_image_is_cut_at_its_edge() -> None:
    inside = polygon_inside([-3.5, -2, 2, -2, 2, 9, -3.5, 9], size=(3, 4))

    assert drawn(inside) == ["##..", "##..", "##.."]


def test_a_concave_polygon_is_filled_row_by_row() -> None:
    # A "U" of 5 x 4 with walls and floor of one pixel.
    corners = [0, 0, 1, 0, 1, 3, 4, 3, 4, 0, 5, 0, 5, 4, 0, 4]

    assert drawn(polygon_inside(corners, size=(4, 5))) == ["#...#", "#...#", "#...#", "#####"]


def test_run_lengths_go_down_the_columns_and_begin_outside() -> None:
    # 3 x 4, columns: "...", ".##", "#..", "..#"
    inside = runs_inside([4, 3, 4, 1], size=(3, 4))

    assert drawn(inside) == ["..#.", ".#..", ".#.#"]


def test_compressed_run_lengths_are_decoded() -> None:
    # One character holds 5 bits of two's complement, least significant first, bit 6: more follow.
    # 4 -> 000100 + 48 = "4"; 3 -> "3"; 4 -> "4"; 1 is stored as 1 - 3 = -2 -> 011110 -> chr(78).
    assert run_lengths("434N") == [4, 3, 4, 1]
    # 40 = 01000 + 00001 << 5: chr(48 + 32 + 8), chr(48 + 1); 0 -> "0"; 16 needs a second
    # character, since 10000 alone would be negative: chr(48 + 32 + 16), chr(48).
    assert run_lengths("X10`0") == [40, 0, 16]
    with pytest.raises(ValueError, match="within a number"):
        run_lengths("4X")


@pytest.mark.parametrize(
    "wrong", [{"counts": [3], "size": [2, 2]}, {"counts": [9], "size": [3, 3]}]
)
def test_run_lengths_of_another_size_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="run lengths"):
        instance_inside(wrong, size=(2, 2))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give an instance file of two images, 3 x 4 and 2 x 3, of which one has no instance."""
    (tmp_path / "images").mkdir()
    for name, size in (("a.png", (4, 3)), ("b.png", (3, 2))):
        Image.new("RGB", size, "grey").save(tmp_path / "images" / name)
    values = {
        "images": [
            {"id": 7, "file_name": "a.png", "height": 3, "width": 4},
            {"id": 9, "file_name": "b.png", "height": 2, "width": 3},
        ],
        "categories": [{"id": 11, "name": "dog"}, {"id": 5, "name": "cat"}],
        "annotations": [
            {"image_id": 7, "category_id": 11, "area": 1,
             "segmentation": [[0, 0, 1, 0, 1, 1, 0, 1]]},
            {"image_id": 7, "category_id": 5, "area": 6,
             "segmentation": [[0, 0, 2, 0, 2, 3, 0, 3]]},
            {"image_id": 7, "category_id": 11, "area": 4, "iscrowd": 1,
             "segmentation": {"size": [3, 4], "counts": [11, 1]}},
        ],
    }  # fmt: skip
    (tmp_path / "instances.json").write_text(json.dumps(values))
    return tmp_path


def test_instances_are_drawn_the_smaller_on_top_by_the_order_of_their_categories(
    folder: Path,
) -> None:
    layout = find_masked(folder)
    assert layout.whole is not None
    part = layout.whole()

    assert part.classes == ("background", "cat", "dog")
    assert part.masks.read(0).tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 2]]
    assert part.masks.read(1).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_panoptic_segments_become_classes_and_the_rest_is_ignored(tmp_path: Path) -> None:
    for name in ("images", "train"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (3, 2), "grey").save(tmp_path / "images" / "x.jpg")
    colours = np.zeros((2, 3, 3), dtype=np.uint8)
    colours[0, 1] = (1, 0, 0)  # segment 1
    colours[1] = (4, 1, 2)  # segment 4 + 256 + 2 * 65536
    Image.fromarray(colours).save(tmp_path / "train" / "x.png")
    values = {
        "images": [{"id": 1, "file_name": "x.jpg", "height": 2, "width": 3}],
        "categories": [{"id": 1, "name": "sky"}, {"id": 3, "name": "road"}],
        "annotations": [{"image_id": 1, "file_name": "x.png", "segments_info": [
            {"id": 1, "category_id": 3}, {"id": 4 + 256 + 2 * 65536, "category_id": 1}]}],
    }  # fmt: skip
    (tmp_path / "train.json").write_text(json.dumps(values))

    part = find_masked(tmp_path).splits["train"]()

    assert part.classes == ("sky", "road")
    assert part.masks.read(0).tolist() == [[IGNORE, 1, IGNORE], [0, 0, 0]]


def test_other_json_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"images": []}')

    with pytest.raises(DataError, match=r"a\.json: is no COCO file .*KeyError: 'categories'"):
        read_coco(tmp_path / "a.json")
