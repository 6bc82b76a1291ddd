"""Figures of starts without labels: weaker evidence than a comparison with few labels."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from mae.evaluation.features import Array
from mae.evaluation.health import dead_share, effective_rank, mean_cosine
from mae.runs.directory import RunDir
from mae.runs.log import read_rows


class LabelFree(NamedTuple):
    """Figures of one start on a sample of the images."""

    name: str
    rank: float
    """Effective rank of its features (RankMe)."""
    dead: float
    """Fraction of the directions along which they do not vary."""
    cosine: float
    """Mean cosine between two images."""
    gain: float | None = None
    """Smaller error of hidden pixels than by in-fill, in dB; of a trained autoencoder."""
    minutes: float = 0.0
    """Spent on training."""
    passes: float | None = None
    """Passes over the images of its training."""
    findings: tuple[str, ...] = ()
    """What the run's health checks found wrong at its end."""


def label_free(name: str, features: Array, **facts: Any) -> LabelFree:
    """Return the figures of features n F.

    Args:
        name: of the start.
        features: n at least 2.
        facts: other fields.
    """
    rows = torch.from_numpy(features)
    return LabelFree(name, effective_rank(rows), dead_share(rows), mean_cosine(rows), **facts)


def last_check(run: RunDir) -> dict[str, Any]:
    """Return gain and findings of the last health check of a run, as fields of `LabelFree`."""
    if not (rows := read_rows(run.health)):
        return {}
    return {"gain": rows[-1].get("gain"), "findings": tuple(rows[-1]["findings"])}


class Unlabelled(NamedTuple):
    """Figures of all starts on images without labels."""

    data: str
    starts: tuple[LabelFree, ...]
    """The random encoder first."""
    images: int
    """Images on which the starts were trained."""
    sample: int
    """Images of the figures."""
    minutes: float
    """Asked for, in all."""
    network: str
    """Network of the random encoder and of MAE from scratch."""

    def values(self) -> dict[str, Any]:
        """Return the values that --json prints."""
        return {"answer": "cannot tell"} | self._asdict()
