"""Read the published results of others from `published.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import NamedTuple


class PublishedScore(NamedTuple):
    """One published result."""

    where: str
    """Table or page that reports it."""
    what: str
    """Setting."""
    model: str
    """Encoder."""
    values: Mapping[str, float]
    """Number by unit."""
    commands: Sequence[str] = ()
    """Commands that would reproduce it; empty where `note` gives the reason."""
    took: str = ""
    """Hardware and time of the published run."""
    note: str = ""
    measured: str = "not run"
    """Result measured in this project."""


class Published(NamedTuple):
    """All published results."""

    about: str
    scores: Sequence[PublishedScore]


def read_published() -> Published:
    """Read `published.toml` of the package."""
    table = tomllib.loads(files("mae.recipes").joinpath("published.toml").read_text("utf-8"))
    scores = [PublishedScore(**row) for row in table["scores"]]
    return Published(table["about"], scores)
