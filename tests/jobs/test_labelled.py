"""Lists of labels say the same as folders do, and one line says what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mae.errors import DataError
from mae.jobs.labelled import labelled
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
        pictures = sorted((root / part).glob("*/*"))
        lines = [f"{path.relative_to(root)},{path.parent.name}" for path in pictures]
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


def test_pictures_need_not_lie_in_folders_of_their_classes(data: Path) -> None:
    write_list(data, "train", "train/a/0.png,shoe", '"train/a/1.png","bag, small"')
    write_list(data, "val", 'val/b/0.png,"bag, small"', "val/c/0.png,shoe")

    train, test, _ = labelled(data, seed=0)

    assert train.source.class_names == ("bag, small", "shoe")
    assert train.source.labels is not None and train.source.labels.tolist() == [1, 0]
    assert test.source.labels is not None and test.source.labels.tolist() == [0, 1]


def test_other_labels_of_the_same_pictures_are_other_data(data: Path) -> None:
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
        (["path,label", "train/a/0.png,a"], "has one class alone, a"),
        ([], "train.csv has no pictures"),
        (["train/a/0.png,a", "train/b/0.png,x"], "hold different classes: b, c, x"),
    ],
)
def test_what_is_wrong_with_a_list_is_one_line(train: list[str], message: str, data: Path) -> None:
    write_lists(data)
    write_list(data, "train", *train)

    with pytest.raises(DataError, match=message) as caught:
        labelled(data, seed=0)

    assert "\n" not in str(caught.value)


def test_a_list_without_one_for_testing_is_refused(data: Path) -> None:
    write_list(data, "train", "train/a/0.png,a", "train/b/0.png,b")

    with pytest.raises(DataError, match="no list for testing beside it; expected one of val.csv"):
        labelled(data, seed=0)
