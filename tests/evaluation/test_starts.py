from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mae.errors import DataError
from mae.evaluation.features import standardized
from mae.evaluation.logistic import linear_probe
from mae.evaluation.starts import correct_of, default_labels, find_images, nested_draws
from tests.jobs.conftest import write_classes

NAMES = ("cat", "dog", "eel")


def test_few_labels_are_ten_a_class_or_half_of_the_smallest() -> None:
    assert default_labels(np.repeat([0, 1, 2], 30), NAMES) == "10/class"
    assert default_labels(np.repeat([0, 1, 2], [30, 9, 50]), NAMES) == "4/class"
    assert default_labels(np.repeat([0, 1, 2], [30, 3, 50]), NAMES) == "2/class"


def test_a_class_with_one_label_is_refused() -> None:
    labels = np.repeat([0, 1, 2], [9, 1, 9])

    with pytest.raises(DataError, match="got 1 of class dog .* at least 2"):
        default_labels(labels, NAMES)
    with pytest.raises(DataError, match="got 1 of class dog"):
        nested_draws([np.arange(19)], labels, names=NAMES, seed=0)


def test_a_list_labels_some_images_of_a_folder(tmp_path: Path) -> None:
    folder = write_classes(tmp_path, "images", count=20) / "images"
    lines = [f"images/{i}.png,{NAMES[i % 2]}\n" for i in range(15)]
    (tmp_path / "labels.csv").write_text("path,label\n" + "".join(lines))

    parts, images, few = find_images(folder, str(tmp_path / "labels.csv"), seed=0, weights=None)

    tested = {Path(parts.test.source.name(i)).name for i in parts.test.ids.tolist()}
    assert (len(parts.train.ids), len(tested), few) == (12, 3, None)
    assert {images.name(i) for i in range(len(images))} == {f"{i}.png" for i in range(20)} - tested


def test_a_list_of_none_of_the_images_is_refused(tmp_path: Path) -> None:
    folder = write_classes(tmp_path, "images", count=20) / "images"
    write_classes(tmp_path, "others", count=4)
    lines = [f"others/{i}.png,{NAMES[i % 2]}\n" for i in range(4)]
    (tmp_path / "labels.csv").write_text("".join(lines))

    with pytest.raises(DataError, match="labels.csv names none of the 20 images of .*others/"):
        find_images(folder, str(tmp_path / "labels.csv"), seed=0, weights=None)


def test_quarters_lie_in_halves_and_halves_in_the_draws() -> None:
    labels = np.repeat([0, 1, 2], 40)
    whole = [np.flatnonzero(np.arange(120) % 5 == part) for part in (0, 1)]  # 8 a class

    quarter, half, full = nested_draws(whole, labels, names=NAMES, seed=0)

    assert (quarter.labels, half.labels, full.labels) == (6, 12, 24)
    for number, ids in enumerate(whole):
        assert full.ids[number].tolist() == ids.tolist()
        assert {*quarter.ids[number]} < {*half.ids[number]} < {*ids}
        assert np.bincount(labels[quarter.ids[number]]).tolist() == [2, 2, 2]


def test_no_class_is_learnt_from_a_single_label() -> None:
    labels = np.repeat([0, 1, 2], 4)

    sizes = nested_draws([np.arange(12)], labels, names=NAMES, seed=0)

    assert [size.labels for size in sizes] == [6, 12]  # not 3


def test_few_labels_of_many_features_are_fitted_as_by_scikit_learn(
    rng: np.random.Generator,
) -> None:
    labels, asked, centres = np.arange(36) % 3, np.arange(60) % 3, rng.normal(size=(3, 90))
    train, test = (
        (centres[y] + 5 * rng.normal(size=(len(y), 90))).astype("f4") for y in (labels, asked)
    )
    [size] = nested_draws([np.arange(36)], labels, names=NAMES, seed=0)[-1:]

    found = correct_of([train], labels, [test], asked, draws=size)[0]

    x, y = standardized(train, test)
    _, l2 = linear_probe(x, labels, y)
    model = LogisticRegression(C=1 / (l2 * 36), tol=1e-8, max_iter=5000).fit(x, labels)
    expected = model.predict(y) == asked
    assert 0.4 < expected.mean() < 0.8
    assert (found == expected).mean() > 0.96  # all but ties within the tolerance of either


def test_seeds_are_averaged(rng: np.random.Generator) -> None:
    labels = np.arange(24) % 3
    train = [rng.normal(size=(24, 7)).astype("f4") for _ in range(2)]
    test = [rng.normal(size=(30, 7)).astype("f4") for _ in range(2)]
    asked = np.arange(30) % 3
    [size] = nested_draws([np.arange(24)], labels, names=NAMES, seed=0)[-1:]

    both = correct_of(train, labels, test, asked, draws=size)

    first = correct_of(train[:1], labels, test[:1], asked, draws=size)
    assert {*both.ravel()} == {0.0, 0.5, 1.0}
    assert (both[first == 1] >= 0.5).all()
