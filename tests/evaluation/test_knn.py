import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from mae.errors import ConfigError
from mae.evaluation import knn
from mae.evaluation.knn import TEMPERATURE, knn_accuracy


def knn_predict(train_x, train_y, test_x, *, k=20):
    return knn.knn_predict(train_x, train_y, test_x, k=k, temperature=TEMPERATURE)


def clusters(rng, n, *, classes=4, features=6):
    labels = rng.integers(0, classes, n)
    centres = np.random.default_rng(1).normal(size=(classes, features))
    noise = rng.normal(size=(n, features))
    return (centres[labels] + noise).astype(np.float32), labels


@pytest.mark.parametrize(("k", "temperature"), [(20, 0.07), (20, 1.0), (7, 0.01), (30, 0.3)])
def test_predictions_equal_scikit_learn_with_the_same_votes(rng, k, temperature):
    (train_x, train_y), (test_x, test_y) = clusters(rng, 300), clusters(rng, 100)
    theirs = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda d: np.exp(-d / temperature)
    ).fit(train_x, train_y)

    predicted = knn.knn_predict(train_x, train_y, test_x, k=k, temperature=temperature)

    np.testing.assert_array_equal(predicted, theirs.predict(test_x))
    accuracy = knn_accuracy(train_x, train_y, test_x, test_y, k=k, temperature=temperature)
    assert accuracy == theirs.score(test_x, test_y)


def test_the_temperature_decides_between_near_and_many():
    # Cosines with (1, 0): 0.8 for class 0 and, twice, 0.6 for class 1.
    train_x = np.array([[8, 6], [6, 8], [6, -8]], dtype=np.float32)
    row = np.array([[1, 0]], dtype=np.float32)

    cold, warm = (
        knn.knn_predict(train_x, np.array([0, 1, 1]), row, k=3, temperature=t) for t in (0.25, 0.32)
    )

    # exp(0.2 / t) against 2 votes: 2.23 and 1.87.
    assert (cold.tolist(), warm.tolist()) == ([0], [1])


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_of_nothing_is_refused(rng, temperature):
    train_x, train_y = clusters(rng, 30)

    with pytest.raises(ConfigError, match="temperature: expected a number above 0"):
        knn.knn_predict(train_x, train_y, train_x, k=3, temperature=temperature)


@pytest.mark.parametrize("parts", [2, 3, 23])
def test_test_rows_may_be_cut_into_any_parts(rng, parts):
    (train_x, train_y), (test_x, _) = clusters(rng, 50), clusters(rng, 23)
    whole = knn_predict(train_x, train_y, test_x)

    cut = [knn_predict(train_x, train_y, part) for part in np.array_split(test_x, parts)]

    np.testing.assert_array_equal(np.concatenate(cut), whole)


def test_cosines_are_the_same_bit_for_bit_however_rows_and_sums_are_cut(rng):
    bank, rows = (
        knn._directions(torch.from_numpy(clusters(rng, n, features=131)[0])) for n in (97, 41)
    )
    whole = rows @ bank.T

    one_by_one = torch.stack([row @ bank.T for row in rows])
    backward = rows.flip(1) @ bank.flip(1).T

    assert torch.equal(whole, one_by_one) and torch.equal(whole, backward)


def test_chunks_do_not_change_predictions(rng, monkeypatch):
    (train_x, train_y), (test_x, _) = clusters(rng, 50), clusters(rng, 23)
    whole = knn_predict(train_x, train_y, test_x)

    monkeypatch.setattr(knn, "CHUNK", 5)

    np.testing.assert_array_equal(knn_predict(train_x, train_y, test_x), whole)


def test_of_equally_near_neighbours_the_earlier_counts():
    train_x = np.tile(np.array([[1, 0]], dtype=np.float32), (40, 1))
    train_y = np.repeat([3, 1], 20)

    assert knn_predict(train_x, train_y, train_x[:1], k=20) == [3]
    assert knn_predict(train_x, train_y[::-1].copy(), train_x[:1], k=20) == [1]


def test_of_equal_votes_the_smaller_class_wins():
    train_x = np.array([[1, 0], [1, 0]], dtype=np.float32)

    assert knn_predict(train_x, np.array([5, 2]), train_x[:1], k=2) == [2]


def test_a_nearer_neighbour_outvotes_two_farther_ones():
    train_x = np.array([[1, 0], [1, 1], [1, 1]], dtype=np.float32)

    predicted = knn_predict(train_x, np.array([1, 0, 0]), np.array([[1, 0]], dtype=np.float32), k=3)

    assert predicted == [1]


def test_a_blank_image_is_given_a_class_not_nan():
    train_x = np.array([[0, 0], [0, 1], [1, 0]], dtype=np.float32)

    predicted = knn_predict(train_x, np.array([2, 2, 1]), np.zeros((1, 2), np.float32), k=3)

    assert predicted == [2]


def test_more_neighbours_than_images_are_refused(rng):
    train_x, train_y = clusters(rng, 19)

    with pytest.raises(ConfigError, match="got 20 neighbours, expected 1 to 19"):
        knn_predict(train_x, train_y, train_x)
