"""Batch norms of a model that is divided among ranks."""

from __future__ import annotations

import pytest
from torch import nn

from mae.errors import ConfigError
from mae.parallel.ddp import share_batch_norms


def test_batch_norms_of_ranks_without_gpus_are_refused() -> None:
    with pytest.raises(ConfigError, match="head.norm batch, whose statistics of all ranks need"):
        share_batch_norms(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))


def test_other_norms_are_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4))
    before = list(model.modules())

    share_batch_norms(model)

    assert list(model.modules()) == before
