"""The Score class: a published result with the commands that would reproduce it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Score(NamedTuple):
    """One published result."""

    where: str
    """Table or page that reports it."""
    what: str
    model: str
    values: Mapping[str, float]
    """Number by unit."""
    commands: tuple[str, ...] = ()
    """Commands that would reproduce it; empty where `note` gives the reason."""
    took: str = ""
    """Hardware and time of the published run."""
    note: str = ""
    measured: str = "not run"
    """Result measured in this project."""


NOT_BUILT = "no command: {} is not built here"


def pretrain_command(recipe: str, run: str, options: str = "") -> str:
    """Return the command that pre-trains on ImageNet-1k."""
    return " ".join(f"mae pretrain {recipe} {options} --data IN1K --out runs/{run}".split())


def finetune_command(recipe: str, run: str, *, data: str = "IN1K", ends: str = "ft") -> str:
    """Return the command that fine-tunes a run on labelled images."""
    return f"mae finetune {recipe} --data {data} --weights runs/{run} --out runs/{run}-{ends}"


def linear_command(weights: str) -> str:
    """Return the command that linearly probes weights on ImageNet-1k as the paper does."""
    return f"mae probe linear {weights} --data IN1K --protocol paper"


def transfer_commands(verb: str, data: str, weights: str, run: str) -> tuple[str, str]:
    """Return the commands that train a detection or segmentation model and evaluate it."""
    return (
        f"mae {verb} train --data {data} --weights {weights} --out runs/{run}",
        f"mae {verb} evaluate runs/{run} --data {data}",
    )
