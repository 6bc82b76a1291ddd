import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from mae.evaluation import logistic as linear
from mae.evaluation.logistic import choose_l2, fit_logistic, linear_probe, logistic_accuracy


def clusters(rng, n, *, classes=4, features=6, spread=1):
    labels = rng.integers(0, classes, n)
    centres = np.random.default_rng(1).normal(size=(classes, features))
    noise = spread * rng.normal(size=(n, features))
    return (centres[labels] + noise).astype(np.float32), labels


@pytest.mark.parametrize("l2", [0.3, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_equal_scikit_learn_at_the_same_strength(rng, l2, dtype):
    features, labels = clusters(rng, 200)
    theirs = LogisticRegression(C=1 / (l2 * 200), tol=1e-8, max_iter=1000).fit(features, labels)
    rows = torch.from_numpy(features).to(dtype)

    model = fit_logistic(rows, torch.from_numpy(labels), num_classes=4, l2=l2, tolerance=1e-5)

    probabilities = model.scores(rows).softmax(dim=1)
    assert probabilities.dtype == dtype
    np.testing.assert_allclose(probabilities, theirs.predict_proba(features), atol=1e-3)


def test_rotating_features_changes_no_prediction(rng):
    (train_x, train_y), (test_x, _) = clusters(rng, 200), clusters(rng, 50)
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0].astype(np.float32)

    straight, _ = linear_probe(train_x, train_y, test_x)
    rotated, _ = linear_probe(train_x @ rotation, train_y, test_x @ rotation)

    np.testing.assert_array_equal(straight, rotated)


def test_fewer_rows_than_features_equal_scikit_learn(rng):
    (train_x, train_y), (test_x, _) = (
        clusters(rng, 40, features=90),
        clusters(rng, 30, features=90),
    )

    predicted, l2 = linear_probe(train_x, train_y, test_x)

    theirs = LogisticRegression(C=1 / (l2 * 40), max_iter=1000).fit(train_x, train_y)
    np.testing.assert_array_equal(predicted, theirs.predict(test_x))


def test_a_start_changes_the_way_not_the_end(rng):
    features, labels = map(torch.from_numpy, clusters(rng, 100))
    far = fit_logistic(features, labels, num_classes=4, l2=1.0)

    warm = fit_logistic(features, labels, num_classes=4, l2=0.03, start=far, tolerance=1e-5)
    cold = fit_logistic(features, labels, num_classes=4, l2=0.03, tolerance=1e-5)

    torch.testing.assert_close(warm.weight, cold.weight, atol=1e-3, rtol=0)


def test_the_chosen_strength_is_the_best_on_the_held_out_part(rng):
    # Classes that overlap, so that the best strength lies between the strongest and the weakest.
    features, labels = clusters(rng, 60, features=40, spread=2.5)
    held = linear.held_out(labels, 0.2, seed=3)

    losses = {}
    for l2 in linear.STRENGTHS:
        theirs = LogisticRegression(C=1 / (l2 * (~held).sum()), tol=1e-8, max_iter=10_000)
        found = theirs.fit(features[~held], labels[~held]).predict_proba(features[held])
        losses[l2] = log_loss(labels[held], found, labels=range(4))

    best = min(losses, key=losses.get)
    assert best not in (linear.STRENGTHS[0], linear.STRENGTHS[-1])
    both = map(torch.from_numpy, (features, labels))
    assert choose_l2(*both, num_classes=4, seed=3) == best


def test_neither_strength_nor_predictions_depend_on_other_test_rows(rng):
    (train_x, train_y), (test_x, _) = clusters(rng, 100), clusters(rng, 20)

    whole, l2 = linear_probe(train_x, train_y, test_x)
    spoiled, spoiled_l2 = linear_probe(
        train_x, train_y, np.concatenate([test_x[:5], 100 * test_x[5:]])
    )

    assert l2 == spoiled_l2
    np.testing.assert_array_equal(whole[:5], spoiled[:5])


def test_a_constant_feature_is_harmless(rng):
    train_x, train_y = clusters(rng, 100)
    train_x[:, 2] = 0

    assert logistic_accuracy(train_x, train_y, train_x, train_y) > 0.5


def test_accuracy_is_the_share_that_is_right(rng):
    (train_x, train_y), (test_x, test_y) = clusters(rng, 100), clusters(rng, 20)

    predicted, _ = linear_probe(train_x, train_y, test_x, seed=2)

    expected = float((predicted == test_y).mean())
    assert logistic_accuracy(train_x, train_y, test_x, test_y, seed=2) == expected
