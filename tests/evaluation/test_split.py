import numpy as np
import pytest

from mae.errors import DataError
from mae.evaluation.split import held_out, labels_per_class

LABELS = np.array([0, 2, 2, 0, 2, 5, 5, 2, 0, 5, 2, 0])  # 4 of 0, 5 of 2, 3 of 5


def test_every_class_gets_as_many_labels():
    chosen = labels_per_class(LABELS, 2, seed=7)

    assert np.bincount(LABELS[chosen]).tolist() == [2, 0, 2, 0, 0, 2]
    assert chosen.tolist() == sorted(set(chosen.tolist()))


def test_a_choice_is_a_function_of_seed_and_draw():
    labels = np.arange(1000) % 4

    first = labels_per_class(labels, 9, seed=7, draw=1)

    np.testing.assert_array_equal(first, labels_per_class(labels, 9, seed=7, draw=1))
    assert len(np.intersect1d(first, labels_per_class(labels, 9, seed=7, draw=2))) < 9
    assert len(np.intersect1d(first, labels_per_class(labels, 9, seed=8, draw=1))) < 9


def test_every_image_is_chosen_equally_often():
    labels = np.repeat([0, 1], 10)

    chosen = [labels_per_class(labels, 5, seed=0, draw=draw) for draw in range(400)]

    counts = np.bincount(np.concatenate(chosen), minlength=20)
    assert counts.min() > 150
    assert counts.max() < 250


def test_too_few_labels_of_a_class_are_named():
    with pytest.raises(DataError, match="got 3 images of class 5, expected at least 4"):
        labels_per_class(LABELS, 4, seed=0)


def test_a_fifth_of_each_class_is_held_out_and_at_least_one():
    held = held_out(np.repeat([0, 1, 2], [20, 2, 1]), 0.2, seed=3)

    assert [int(held[:20].sum()), int(held[20:22].sum()), int(held[22:].sum())] == [4, 1, 0]


def test_nothing_to_hold_out_is_refused():
    with pytest.raises(DataError, match="one image a class"):
        held_out(np.arange(4), 0.2, seed=0)
