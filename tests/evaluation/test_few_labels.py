from pathlib import Path

import numpy as np
import pytest

from mae.data.sources.source import ArraySource
from mae.errors import ConfigError, DataError
from mae.evaluation.few_labels import (
    choose_labels,
    read_choice,
    write_choice,
)

LABELS = np.repeat([0, 1, 2], [200, 100, 30])


@pytest.fixture
def source() -> ArraySource:
    images = np.zeros((330, 2, 3, 1), dtype=np.uint8)
    return ArraySource(images, labels=LABELS, class_names=("ant", "bee", "cat"))


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("1%", [2, 1, 1]),
        (" 0.5 % ", [1, 1, 1]),
        (" 12.5 % ", [25, 12, 4]),
        ("100%", [200, 100, 30]),
        ("10/class", [10, 10, 10]),
        ("3 / class", [3, 3, 3]),
    ],
)
def test_fractions_and_numbers_are_read(text: str, sizes: list[int]):
    assert np.bincount(LABELS[choose_labels(LABELS, text, seed=5)]).tolist() == sizes


@pytest.mark.parametrize("text", ["10", "0%", "101%", "0/class", "-1%", "1/clas", "", "ten/class"])
def test_anything_else_is_refused_with_what_is_expected(text: str):
    with pytest.raises(ConfigError, match="expected a fraction up to 100% as in 1%, 10/class, or"):
        choose_labels(LABELS, text, seed=5)


def test_a_share_is_taken_of_each_class_and_at_least_one():
    chosen = choose_labels(LABELS, "1%", seed=5)

    assert np.bincount(LABELS[chosen]).tolist() == [2, 1, 1]


def test_a_number_is_taken_of_each_class():
    chosen = choose_labels(LABELS, "7/class", seed=5)

    assert np.bincount(LABELS[chosen]).tolist() == [7, 7, 7]
    assert chosen.tolist() == sorted(set(chosen.tolist()))


def test_everything_is_everything():
    assert choose_labels(LABELS, "100%", seed=5).tolist() == list(range(330))


def test_a_choice_repeats_and_another_draw_is_another_choice():
    first, again, other = (choose_labels(LABELS, "9/class", seed=5, draw=d) for d in (1, 1, 2))

    assert first.tolist() == again.tolist() != other.tolist()


def test_a_larger_choice_holds_the_smaller_one():
    small, large = (set(choose_labels(LABELS, text, seed=5)) for text in ("3/class", "8/class"))

    assert small < large


def test_more_labels_than_a_class_has_are_refused_by_name():
    with pytest.raises(DataError, match="got 30 images of class cat, expected at least 31"):
        choose_labels(LABELS, "31/class", seed=5, names=("ant", "bee", "cat"))


def test_a_choice_is_written_and_read_back(source: ArraySource, tmp_path: Path):
    draws = [choose_labels(LABELS, "4/class", seed=5, draw=draw) for draw in range(3)]

    write_choice(tmp_path / "few.csv", source, draws)

    found = read_choice(tmp_path / "few.csv", source, among=np.arange(330))
    assert [ids.tolist() for ids in found] == [ids.tolist() for ids in draws]
    lines = (tmp_path / "few.csv").read_text().splitlines()
    assert lines[0] == "draw,name,class" and lines[1] == f"0,image {draws[0][0]},ant"
    assert len(lines) == 1 + 3 * 12


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0,image 999,ant", "line 2: image 999 is not in the data"),
        ("0,image 0,bee", "line 2: image 0 is of class bee, in the data of ant"),
        ("0,picture 7,ant", "line 2: image 7 is held out for testing"),
        ("x,image 0,ant", "few.csv: expected the columns draw,name,class"),
        ("", "names no image$"),
        ("4,image 0,ant\n4,image 300,cat", "names no image of class bee in draw 4"),
    ],
)
def test_a_choice_that_does_not_fit_is_refused(
    line: str, message: str, source: ArraySource, tmp_path: Path
):
    (tmp_path / "few.csv").write_text(f"draw,name,class\n{line}\n")

    with pytest.raises(DataError, match=message):
        read_choice(tmp_path / "few.csv", source, among=np.delete(np.arange(330), 7))


def test_other_files_are_refused(source: ArraySource, tmp_path: Path):
    (tmp_path / "few.csv").write_text("a,b\n1,2\n")

    with pytest.raises(DataError, match="expected the columns"):
        read_choice(tmp_path / "few.csv", source, among=np.arange(330))
    with pytest.raises(DataError, match="No such file"):
        read_choice(tmp_path / "gone.csv", source, among=np.arange(330))
    with pytest.raises(ConfigError, match=r"ends in '.txt', expected .csv"):
        write_choice(tmp_path / "few.txt", source, [])
