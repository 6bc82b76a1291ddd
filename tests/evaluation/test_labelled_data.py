"""Splits and classes are found in folders, lists, tar files and packs alike, and said."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae.data.sources.source import FolderSource
from mae.errors import DataError
from mae.evaluation.labelled_data import HeldOut, Part, labelled
from mae.jobs.data_pack import pack
from tests.jobs.conftest import write_classes


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_classes(tmp_path / "train", "a", "b", "c", count=2)
    write_classes(tmp_path / "val", "a", "b", "c", count=1)
    return tmp_path


def write_list(root: Path, name: str, *lines: str) -> None:
    (root / f"{name}.csv").write_text("".join(f"{line}\n" for line in lines))


def write_lists(root: Path) -> None:
    for part in ("train", "val"):
        images = sorted((root / part).glob("*/*"))
        lines = [f"{path.relative_to(root)},{path.parent.name}" for path in images]
        write_list(root, part, "path,label", *lines)


@pytest.mark.parametrize("named", ["", "train.csv"])
def test_a_list_is_the_same_as_folders(named: str, data: Path) -> None:
    folders = labelled(data, seed=0)
    write_lists(data)

    listed = labelled(data / named, seed=0)

    for found, expected in zip(listed[:2], folders[:2], strict=True):
        assert found.source.class_names == expected.source.class_names == ("a", "b", "c")
        assert found.source.labels is not None and expected.source.labels is not None
        assert np.array_equal(found.source.labels, expected.source.labels)
        for i in range(len(expected.source)):
            assert found.source.read(i) == expected.source.read(i)


def test_images_need_not_lie_in_folders_of_their_classes(data: Path) -> None:
    write_list(data, "train", "train/a/0.png,shoe", '"train/a/1.png","bag, small"')
    write_list(data, "val", 'val/b/0.png,"bag, small"', "val/c/0.png,shoe")

    train, test, *_ = labelled(data, seed=0)

    assert train.source.class_names == ("bag, small", "shoe")
    assert train.source.labels is not None and train.source.labels.tolist() == [1, 0]
    assert test.source.labels is not None and test.source.labels.tolist() == [0, 1]


def test_other_labels_of_the_same_images_are_other_data(data: Path) -> None:
    write_lists(data)
    before = labelled(data, seed=0).train.source.fingerprint()
    text = (data / "train.csv").read_text()
    (data / "train.csv").write_text(text.replace("a/1.png,a", "a/1.png,b"))

    assert labelled(data, seed=0).train.source.fingerprint() != before


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (["train/a/0.png,a", "train/b/0.png"], "train.csv, line 2: got .*expected path,label"),
        (["train/a/0.png,a", "train/b/9.png,b"], "line 2: there is no .*train/b/9.png"),
        (["path,label", "train/a/0.png,a"], "has only one class, a"),
        ([], "train.csv has no images"),
        (
            ["train/a/0.png,a", "train/b/0.png,x"],
            "2 of the classes of .*val.csv are not in .*: b, c",
        ),
        (
            ["path,label", "train/a/0.png,a", "train/b/0.png,b", "", "train/a/../a/0.png,b"],
            "lines 2 and 5: .* has two labels, a and b; keep one",
        ),
    ],
)
def test_what_is_wrong_with_a_list_is_one_line(train: list[str], message: str, data: Path) -> None:
    write_lists(data)
    write_list(data, "train", *train)

    with pytest.raises(DataError, match=message) as caught:
        labelled(data, seed=0)

    assert "\n" not in str(caught.value)


def test_of_a_list_alone_a_fifth_is_held_out_and_no_image_lies_in_both(tmp_path: Path) -> None:
    write_classes(tmp_path, "a", "b", count=10)
    lines = [f"{name}/{i}.png,{name}" for name in "ab" for i in range(10)]
    write_list(tmp_path, "labels", *lines, *(f"./{line}" for line in lines))

    train, test, held, notes = labelled(tmp_path / "labels.csv", seed=3)

    assert (len(train.ids), len(test.ids), held) == (16, 4, HeldOut(3, 0.2))
    paths = [
        {Path(s.path(i)).resolve() for i in ids}
        for s, ids in (train, test)
        if isinstance(s, FolderSource)
    ]
    assert len(paths) == 2 and not paths[0] & paths[1]
    assert (
        "20 of 40 lines name an image again, the first is ./a/0.png in lines 1 and 21" in notes[1]
    )


def test_blanks_around_labels_and_paths_are_cut(data: Path) -> None:
    write_list(
        data, "train", " path , label ", "train/a/0.png,a ", " train/b/0.png , b", "train/c/0.png,c"
    )
    write_list(data, "val", "val/a/0.png,a", "val/b/0.png,\tb", "val/c/0.png, c")

    train, test, *_ = labelled(data, seed=0)

    assert train.source.class_names == test.source.class_names == ("a", "b", "c")
    assert [len(part.ids) for part in (train, test)] == [3, 3]


def test_images_in_both_lists_are_counted_and_said(data: Path) -> None:
    write_lists(data)
    (data / "sub").mkdir()
    lines = (data / "train.csv").read_text().splitlines()[1:4]
    text = (data / "val.csv").read_text()
    (data / "val.csv").write_text(text + "".join(f"sub/../{line}\n" for line in lines))

    notes = labelled(data, seed=0).notes

    assert notes[1:] == (
        "val.csv: 3 of 6 images are in train.csv too, sub/../train/a/0.png first: "
        "trained and tested on",
    )


def test_an_image_twice_in_a_list_is_said(data: Path) -> None:
    write_lists(data)
    with (data / "train.csv").open("a") as file:
        file.write("train/a/0.png,a\n")

    notes = labelled(data, seed=0).notes

    assert (
        "1 of 7 lines name an image again, the first is train/a/0.png in lines 2 and 8" in notes[1]
    )


def test_a_list_for_testing_without_labels_is_left(tmp_path: Path) -> None:
    write_classes(tmp_path / "images", "a", "b", count=5)
    write_list(tmp_path, "train", *(f"images/{c}/{i}.png,{c}" for c in "ab" for i in range(5)))
    write_list(tmp_path, "test", "path", "images/a/0.png", "images/b/0.png")

    found = labelled(tmp_path, seed=0)

    assert (len(found.train.ids), len(found.test.ids)) == (8, 2)
    assert found.notes[0].endswith("not used: test.csv")


@pytest.mark.parametrize(
    ("ending", "separator", "named"),
    [(".tsv", "\t", ""), (".tsv", "\t", "train.tsv"), (".txt", " ", "train.txt")],
)
def test_lists_of_other_endings_are_splits_too(
    ending: str, separator: str, named: str, tmp_path: Path
) -> None:
    write_classes(tmp_path / "images", "a", "b", count=3)
    for name, numbers in (("train", (0, 1)), ("valid", (2,))):
        lines = [f"images/{c}/{i}.png{separator}{c}\n" for c in "ab" for i in numbers]
        (tmp_path / f"{name}{ending}").write_text("".join(lines))

    found = labelled(tmp_path / named, seed=0)

    assert f"4 images in train{ending} for training, 2 in valid{ending}" in found.notes[0]


SPELLINGS = [
    ("train", "val"), ("Train", "Val"), ("TRAIN", "TEST"), ("training", "testing"),
    ("Training", "Validation"), ("train", "valid"), ("train", "validation"), ("train", "dev"),
    ("train", "eval"), ("train", "Test"), ("train_set", "test_set"), ("train2017", "val2017"),
]  # fmt: skip


@pytest.fixture(params=SPELLINGS, ids="-".join)
def spelt(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str, str]:
    """Give splits of 3 classes by usual names, of 4 and 2 images each."""
    train, test = request.param
    write_classes(tmp_path / "data" / train, "a", "b", "c", count=4)
    write_classes(tmp_path / "data" / test, "a", "b", "c", count=2, seed=50)
    return tmp_path / "data", train, test


def names(part: Part) -> list[str]:
    return [part.source.name(i) for i in part.ids.tolist()]


def test_splits_of_any_usual_name_are_taken(spelt: tuple[Path, str, str]) -> None:
    root, train, test = spelt

    found = labelled(root, seed=0)

    assert found.train.source.class_names == found.test.source.class_names == ("a", "b", "c")
    assert found.held is None and found.notes == (
        f"{root}: 12 images in {train} for training, 6 in {test} for testing; 3 classes: a, b, c",
    )
    assert names(found.test) == ["a/0.png", "a/1.png", "b/0.png", "b/1.png", "c/0.png", "c/1.png"]


def test_splits_in_a_tar_or_a_pack_are_taken(spelt: tuple[Path, str, str]) -> None:
    root, train, test = spelt
    with tarfile.open(root.parent / "data.tar", "w") as tar:
        tar.add(root, "data")
    pack(root, root.parent / "pack", quiet=True)

    for archive in (root.parent / "data.tar", root.parent / "pack"):
        found = labelled(archive, seed=0)

        assert found.train.source.class_names == found.test.source.class_names == ("a", "b", "c")
        assert (len(found.train.ids), len(found.test.ids)) == (12, 6)
        assert found.test.source.labels is not None
        assert found.test.source.labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert all(f"{test}/" in name for name in names(found.test))
        pixels = found.test.source.read(5)
        assert pixels == (root / test / "c" / "1.png").read_bytes()


def test_the_classes_of_a_whole_folder_are_not_its_splits(spelt: tuple[Path, str, str]) -> None:
    source = FolderSource(spelt[0])

    assert source.class_names == ("a", "b", "c")
    assert source.labels is not None and np.bincount(source.labels).tolist() == [6, 6, 6]


def test_tar_files_named_as_splits_are_splits(tmp_path: Path) -> None:
    for number, shard in enumerate(("x-train-000", "x-train-001", "x-val-000")):
        write_classes(tmp_path / shard, "a", "b", count=number + 1)
        (tmp_path / "tars").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / "tars" / f"{shard}.tar", "w") as tar:
            tar.add(tmp_path / shard, ".")

    found = labelled(tmp_path / "tars", seed=0)

    assert (len(found.train.ids), len(found.test.ids)) == (6, 6)
    assert all(name.startswith("x-val-000.tar/") for name in names(found.test))


def test_of_several_the_validation_split_is_tested_on_and_the_others_are_named(
    tmp_path: Path,
) -> None:
    for name in ("train", "valid", "test", "annotations"):
        write_classes(tmp_path / name, "a", "b", count=2)

    found = labelled(tmp_path, seed=0)

    assert found.notes == (
        f"{tmp_path}: 4 images in train for training, 4 in valid for testing; 2 classes: a, b; "
        "not used: test, annotations",
    )


def test_what_lies_beside_train_and_is_no_split_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", "a", "b", count=5)
    (tmp_path / "test").mkdir()
    Image.new("RGB", (9, 7)).save(tmp_path / "test" / "0.png")  # without labels, as of Kaggle
    write_classes(tmp_path / "masks", "x", count=1)

    found = labelled(tmp_path, seed=0)

    assert (len(found.train.ids), len(found.test.ids), found.held) == (8, 2, HeldOut(0, 0.2))
    assert found.notes[0].endswith("; 2 classes: a, b; not used: masks, test")


@pytest.mark.parametrize(
    ("first", "second", "learnt"),
    [("learn", "test", "learn"), ("train", "check", "train"), ("x", "y", "x"), ("b", "a", "b")],
)
def test_two_folders_of_the_same_classes_are_splits_by_any_name(
    first: str, second: str, learnt: str, tmp_path: Path
) -> None:
    write_classes(tmp_path / first, "a", "b", "c", count=4)
    write_classes(tmp_path / second, "a", "b", count=2)  # of c there is nothing to test on

    found = labelled(tmp_path, seed=0)

    assert names(found.train)[-1] == "c/3.png" and len(found.train.ids) == 12
    assert f"12 images in {learnt} for training, 4 in {second}" in found.notes[0]
    assert found.notes[1].startswith("guess: ")
    assert found.notes[2] == f"{second}: no image of c, not tested"


def test_many_folders_of_the_same_names_are_classes_and_that_is_said(tmp_path: Path) -> None:
    for person in ("ann", "bob", "cyd"):
        write_classes(tmp_path / person, "left", "right", count=5)

    found = labelled(tmp_path, seed=0)

    assert found.train.source.class_names == ("ann", "bob", "cyd")
    assert found.notes[1].startswith("guess: ann, bob, cyd are taken for classes though all hold")


def test_a_class_that_is_called_as_a_split_stays_a_class(tmp_path: Path) -> None:
    write_classes(tmp_path, "bus", "car", "train", count=5)

    assert labelled(tmp_path, seed=0).train.source.class_names == ("bus", "car", "train")


def test_a_split_beside_the_classes_it_holds_is_refused(tmp_path: Path) -> None:
    write_classes(tmp_path, "a", "b", count=5)
    write_classes(tmp_path / "test", "a", "b", count=2)

    with pytest.raises(DataError, match="has classes and test, a split of them, side by side"):
        labelled(tmp_path, seed=0)


def test_the_first_ten_of_many_classes_are_named(tmp_path: Path) -> None:
    write_classes(tmp_path, *(f"c{i:02}" for i in range(12)), count=2)

    line = labelled(tmp_path, seed=0).notes[0]

    named = ", ".join(f"c{i:02}" for i in range(10))
    assert line == (
        f"{tmp_path}: 12 images for training, 12 for testing (20% of each class held out for "
        f"testing, seed 0); 12 classes: {named} and 2 more"
    )


def test_a_test_split_may_lack_classes_and_its_labels_are_those_of_train(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", "a", "b", "c", count=2)
    write_classes(tmp_path / "val", "b", count=1)
    (tmp_path / "val" / "a").mkdir()

    found = labelled(tmp_path, seed=0)

    assert found.test.source.class_names == ("a", "b", "c")
    assert found.test.source.labels is not None and found.test.source.labels.tolist() == [1]
    assert found.notes[1] == "val: no image of a, c, not tested"


def test_splits_without_one_to_learn_from_are_refused(tmp_path: Path) -> None:
    for name in ("val", "test"):
        write_classes(tmp_path / name, "a", "b", count=2)

    with pytest.raises(DataError, match="has val and test but no split to train on; name one"):
        labelled(tmp_path, seed=0)
