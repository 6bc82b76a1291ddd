"""What a training step changes, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class TrainState:
    """The model, its optimiser and where the run stands."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    """Optimiser steps taken; a skipped step counts."""
    bad_in_a_row: int = 0
    """Steps just skipped because the loss or the gradient was not finite."""
    scaler: torch.amp.GradScaler | None = None
    """What scales the loss in fp16."""
