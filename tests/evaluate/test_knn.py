import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from mae.errors import ConfigError
from mae.evaluate import knn
from mae.evaluate.knn import TEMPERATURE, knn_accuracy


def knn_predict(train_x, train_y, test_x, *, k=20):
    return knn.knn_predict(train_x, train_y, test_x, k=k, temperature=TEMPERATURE)


def clusters(rng, n, *, classes=4, features=6):
    labels = rng.integers(0, classes, n)
    centres = np.random.default_rng(1).normal(size=(classes, features))
    noise = rng.normal(size=(n, features))
    return (centres[labels] + noise).astype(np.float32), labels


def test_predictions_equal_scikit_learn_with_the_same_votes(rng):
    (train_x, train_y), (test_x, test_y) = clusters(rng, 300), clusters(rng, 100)
    theirs = KNeighborsClassifier(
        20, metric="cosine", algorithm="brute", weights=lambda distance: np.exp(-distance / 0.07)
    ).fit(train_x, train_y)

    predicted = knn_predict(train_x, train_y, test_x)

    np.testing.assert_array_equal(predicted, theirs.predict(test_x))
    assert knn_accuracy(train_x, train_y, test_x, test_y) == theirs.score(test_x, test_y)


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


def test_a_blank_picture_is_given_a_class_not_nan():
    train_x = np.array([[0, 0], [0, 1], [1, 0]], dtype=np.float32)

    predicted = knn_predict(train_x, np.array([2, 2, 1]), np.zeros((1, 2), np.float32), k=3)

    assert predicted == [2]


def test_more_neighbours_than_pictures_are_refused(rng):
    train_x, train_y = clusters(rng, 19)

    with pytest.raises(ConfigError, match="got 20 neighbours, expected 1 to 19"):
        knn_predict(train_x, train_y, train_x)
