"""A published result, and the commands that would reproduce it here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Score(NamedTuple):
    """One published result."""

    where: str
    """The table or page it stands in."""
    what: str
    model: str
    values: Mapping[str, float]
    """Number by unit."""
    commands: tuple[str, ...] = ()
    """What would reproduce it; none where `note` says why."""
    took: str = ""
    """Hardware time it took others."""
    note: str = ""
    measured: str = "not run"
    """Our own result."""


NOT_BUILT = "no command: {} is not built here"


def pretrain_command(recipe: str, run: str, options: str = "") -> str:
    """Pre-train on ImageNet-1k."""
    return " ".join(f"mae pretrain {recipe} {options} --data IN1K --out runs/{run}".split())


def finetune_command(recipe: str, run: str, *, data: str = "IN1K", ends: str = "ft") -> str:
    """Fine-tune a run on labelled pictures."""
    return f"mae finetune {recipe} --data {data} --weights runs/{run} --out runs/{run}-{ends}"


def linear_command(weights: str) -> str:
    """Probe weights on ImageNet-1k as the paper does."""
    return f"mae probe linear {weights} --data IN1K --protocol paper"


def transfer_commands(verb: str, data: str, weights: str, run: str) -> tuple[str, str]:
    """Train a detector or a segmentation on weights, and evaluate it."""
    return (
        f"mae {verb} train --data {data} --weights {weights} --out runs/{run}",
        f"mae {verb} evaluate runs/{run} --data {data}",
    )
