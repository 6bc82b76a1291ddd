import pytest

from mae.errors import ConfigError
from mae.evaluation import robustness
from mae.evaluation.robustness import (
    ALEXNET_ERRORS,
    corruption_error,
    mean_corruption_error,
    set_classes,
)


def test_there_are_fifteen_corruptions_whose_mean_is_the_known_one():
    assert len(ALEXNET_ERRORS) == 15
    assert sum(ALEXNET_ERRORS.values()) / 15 == pytest.approx(0.78899, abs=5e-6)


def test_errors_are_divided_by_those_of_alexnet_one_corruption_at_a_time():
    # Five severities of mean 0.3: 0.3 / 0.564592.
    assert corruption_error([0.1, 0.2, 0.3, 0.4, 0.5], "brightness") == pytest.approx(
        0.531357, 1e-5
    )


def test_alexnet_itself_has_an_mce_of_one():
    errors = {name: [error] * 5 for name, error in ALEXNET_ERRORS.items()}

    assert mean_corruption_error(errors) == pytest.approx(1)


def test_the_mce_is_the_mean_of_the_quotients_not_the_quotient_of_the_means():
    errors = {name: [0.0] * 5 for name in ALEXNET_ERRORS}
    errors["snow"] = [0.866816] * 5
    errors["jpeg_compression"] = [0.30325] * 5

    assert mean_corruption_error(errors) == pytest.approx((1 + 0.5) / 15)


@pytest.mark.parametrize(
    ("which", "first"),
    [
        ("imagenet-a", [6, 11, 13, 15, 17, 22]),
        ("imagenet-r", [1, 2, 4, 6, 8, 9, 11, 13]),
    ],
)
def test_the_lists_have_200_classes_and_begin_as_known(which, first):
    classes = set_classes(which)

    assert len(classes) == 200 and classes[: len(first)] == first
    assert classes == sorted(set(classes)) and classes[-1] < 1000


def test_without_timm_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(robustness, "find_spec", lambda name: None)

    with pytest.raises(ConfigError, match="imagenet-a: needs timm's list .* pip install"):
        set_classes("imagenet-a")
