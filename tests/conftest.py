"""Fixtures for tests of several packages."""

from __future__ import annotations

from pathlib import Path

import pytest

from mae.model.create import create
from mae.weights.formats.native import save
from tests.jobs.conftest import TINY


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder of weights for images of 24 x 40, C=3."""
    path = tmp_path_factory.mktemp("made") / "weights"
    save(create(TINY), path)
    return path
