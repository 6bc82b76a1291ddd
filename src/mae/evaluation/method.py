"""Classifiers on features by name: k-NN and logistic regression."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

from mae.config.model import refuse_without_effect
from mae.evaluation.knn import NEIGHBOURS, TEMPERATURE, knn_accuracy, require_temperature
from mae.evaluation.logistic import logistic_accuracy


class Method(NamedTuple):
    """A classifier on features."""

    name: str
    accuracy: Callable[..., float]
    """Accuracy, 0 to 1, from training features and classes, test features and classes."""
    splits_test: bool = False
    """Whether several processes split the test features, by a keyword `ranks`; otherwise each of
    them does the whole work."""


def choose_method(
    name: Literal["knn", "linear"], *, k: int | None, temperature: float | None = None, seed: int
) -> Method:
    """Choose between k-NN and logistic regression.

    Args:
        name: name of the method.
        k: number of neighbours; none: NEIGHBOURS.
        temperature: temperature of the neighbours' votes; none: TEMPERATURE.
        seed: seed of the validation part on which logistic regression chooses its regularisation.

    Raises:
        ConfigError: for an option that the method does not use, or an invalid temperature.
    """
    if name == "linear":
        refuse_without_effect("linear", "knn", k=k, temperature=temperature)
        return Method("logistic regression", partial(logistic_accuracy, seed=seed))
    k = NEIGHBOURS if k is None else k
    t = TEMPERATURE if temperature is None else temperature
    require_temperature(t)
    shown = "" if temperature is None else f", temperature {t:g}"
    return Method(
        f"k-NN, k = {k}{shown}", partial(knn_accuracy, k=k, temperature=t), splits_test=True
    )
