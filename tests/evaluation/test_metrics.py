import math

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, log_loss, top_k_accuracy_score

from mae.errors import WeightsError
from mae.evaluation.inputs import joined
from mae.evaluation.metrics import Predictions, class_rows, predictions_from_scores

SCORES = torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 1.0], [5.0, 5.0, 5.0], [0.0, math.log(3), 0.0]])
LABELS = np.array([0, 1, 1, 2])


def judged(scores, labels):
    return predictions_from_scores(scores, labels=np.asarray(labels), ids=np.arange(len(labels)))


def test_ranks_count_the_classes_ahead_and_earlier_ones_of_equal_score():
    found = judged(SCORES, LABELS)

    # Right; behind 2 and the equal 0; behind the equal 0; behind 1 and the equal 0.
    assert found.ranks.tolist() == [0, 2, 1, 2]
    assert found.predicted.tolist() == [0, 2, 0, 1]
    assert [found.top(k) for k in (1, 2, 3)] == [0.25, 0.5, 1.0]


def test_loss_and_probability_are_those_of_the_softmax():
    found = judged(SCORES[2:], LABELS[2:])

    assert found.losses.tolist() == pytest.approx([math.log(3), math.log(5)])
    assert found.probabilities.tolist() == pytest.approx([1 / 3, 3 / 5])
    assert found.loss == pytest.approx((math.log(3) + math.log(5)) / 2)


def test_figures_equal_those_of_scikit_learn(rng):
    scores, labels = rng.normal(size=(57, 9)), rng.integers(0, 9, 57)

    found = judged(torch.from_numpy(scores), labels)

    every = range(9)
    for k in (1, 5):
        assert found.top(k) == pytest.approx(
            top_k_accuracy_score(labels, scores, k=k, labels=every)
        )
    shares = torch.from_numpy(scores).softmax(dim=1).numpy()
    assert found.loss == pytest.approx(log_loss(labels, shares, labels=every))
    theirs = confusion_matrix(labels, found.predicted, labels=every)
    np.testing.assert_array_equal(found.confusion(9), theirs)


@pytest.mark.parametrize("batch", [1, 4, 7, 23, 40])
def test_every_image_counts_once_whatever_the_batch(rng, batch):
    scores, labels = torch.from_numpy(rng.normal(size=(23, 6))), rng.integers(0, 6, 23)
    whole = judged(scores, labels)

    cuts = [range(23)[start : start + batch] for start in range(0, 23, batch)]
    parts = [predictions_from_scores(scores[c], labels=labels[c], ids=np.array(c)) for c in cuts]

    found = Predictions(*joined(parts[::-1]))
    assert found.ids.tolist() == list(range(23))
    assert all(np.array_equal(ours, other) for ours, other in zip(found, whole, strict=True))
    assert found.confusion(6).sum() == 23


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_refused_not_counted_right(value):
    with pytest.raises(WeightsError, match="got NaN or infinity from the classifier"):
        judged(torch.tensor([[0.0, value]]), [0])


def test_a_class_is_told_with_what_it_is_mistaken_for():
    confusion = np.array([[4, 0, 0], [1, 2, 3], [0, 0, 0]])

    rows = class_rows(confusion, ("ant", "bee", "cat"))

    assert [tuple(row)[:4] for row in rows] == [
        ("ant", 4, 4, ""),
        ("bee", 6, 2, "cat"),
        ("cat", 0, 0, ""),
    ]
    assert rows[1].accuracy == pytest.approx(1 / 3) and math.isnan(rows[2].accuracy)
