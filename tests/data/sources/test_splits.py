"""Which names are splits, and when folders of other names are."""

from __future__ import annotations

import pytest

from mae.data.sources.splits import Inside, Kind, find_splits, inside_of, split_kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("train", "train"), ("Training", "train"), ("TRAIN2017", "train"), ("trainval", "train"),
        ("train-set", "train"), ("TrainData", "train"), ("val", "val"), ("valid", "val"),
        ("Validation", "val"), ("val_images", "val"), ("dev", "val"), ("eval", "val"),
        ("test", "test"), ("Testing", "test"), ("testset", "test"), ("test 2", "test"),
    ],
)  # fmt: skip
def test_usual_names_are_splits(name: str, kind: Kind) -> None:
    assert split_kind(name) == kind


@pytest.mark.parametrize(
    "name", "trains trainers valley valve testudo device evaluator retrain my_test cat".split()
)
def test_names_that_only_begin_alike_are_classes(name: str) -> None:
    assert split_kind(name) is None


def test_of_several_of_a_kind_the_shortest_name_is_taken() -> None:
    inside = {name: Inside(frozenset("ab")) for name in ("train", "train_masks", "val", "dev_2")}

    found = find_splits(inside, len)

    assert found is not None and found.parts == {"train": "train", "val": "val"}
    assert found.left == ("dev_2", "train_masks")


def test_what_folders_hold_is_told_from_paths() -> None:
    assert inside_of(["a/b/0.png", "a/c/d/1.png", "e/2.png", "3.png"]) == {
        "a": Inside(frozenset("bc")),
        "e": Inside(loose=True),
    }


def test_folders_of_classes_that_each_have_splits_are_classes() -> None:
    inside = {name: Inside(frozenset(("train", "test"))) for name in ("bottle", "cable")}

    assert find_splits(inside, len) is None
