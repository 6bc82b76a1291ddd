"""ImageNet robustness sets (He et al. 2021, Table 13): class lists and mCE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Literal

from mae.errors import ConfigError

SEVERITIES = 5

# Error of AlexNet, mean of five severities. Source: hendrycks/robustness, the evaluation code of
# ImageNet-C (Hendrycks and Dietterich 2019).
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""The 15 corruptions of ImageNet-C by folder, with the AlexNet errors that normalise them."""


def corruption_error(errors: Sequence[float], corruption: str) -> float:
    """Return the error of a corruption divided by AlexNet's.

    Args:
        errors: at each of the five severities, 0 to 1.
        corruption: one of `ALEXNET_ERRORS`.
    """
    assert len(errors) == SEVERITIES
    return fmean(errors) / ALEXNET_ERRORS[corruption]


def mean_corruption_error(errors: Mapping[str, Sequence[float]]) -> float:
    """Return the mCE as a fraction: mean of the 15 corruption errors (Hendrycks et al. 2019).

    Args:
        errors: at each of the five severities, for each of `ALEXNET_ERRORS`.
    """
    return fmean(corruption_error(errors[name], name) for name in ALEXNET_ERRORS)


def set_classes(which: Literal["imagenet-a", "imagenet-r"]) -> list[int]:
    """Return the 200 of the 1,000 ImageNet classes in a robustness set, ascending.

    The list is read from the files of timm, without importing it.

    Raises:
        ConfigError: if timm is not installed.
    """
    spec = find_spec("timm")
    name = f"{which.replace('-', '_')}_indices.txt"
    folders = spec.submodule_search_locations if spec else None
    path = Path(folders[0], "data", "_info", name) if folders else None
    if path is None or not path.is_file():
        raise ConfigError(f"{which}: needs timm's list {name}; pip install 'timm>=1.0.15'")
    return [int(line) for line in path.read_text().split()]
